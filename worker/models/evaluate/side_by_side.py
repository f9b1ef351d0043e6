"""One pass of several models over the same batches, side by side, one layer at a time.

All variants share one skeleton. Every (variant, batch) pair runs the model's own ``forward`` in a thread of its own and
stops at the embedding, at each layer and at the head (:mod:`worker.models.imatrix.lockstep`). At each of these doors
the reference's weights are read once, and each variant's take their place while its batches pass. At the head the
batches go one after the other, so that of the logits only one batch of the reference and one of another variant exist;
a variant's head is decoded anew for each batch, which is little beside multiplying with it.

Memory: the weights outside the doors, two variants' weights of one layer or of the head, hidden states of all batches
for every variant, and the logits of two batches. Nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.models.evaluate.arithmetic import InputType, RoundedInputs
from worker.models.evaluate.doors import find_model_doors
from worker.models.evaluate.inverse import BlockMap, map_block
from worker.models.evaluate.scores import ReferenceBatch, TokenScores
from worker.models.evaluate.sequences import Batch
from worker.models.evaluate.variants import Destination, Variant
from worker.models.imatrix.lockstep import Door, Lockstep
from worker.models.imatrix.model import Skeleton
from worker.models.imatrix.names import Converter
from worker.setting import Report, WorkProgress, no_report
from worker.stop import ShouldStop


@dataclass(frozen=True)
class _Placed:
    """A variant's parameters at one place, and what the inputs of their products are rounded to; both by name."""

    values: Mapping[str, torch.Tensor]
    inputs: Mapping[str, InputType]

    def rounded(self) -> list[tuple[torch.Tensor, InputType]]:
        """The weights whose inputs are rounded."""
        return [(self.values[name], kind) for name, kind in self.inputs.items()]


@dataclass
class SideBySide:
    """Runs variants over batches.

    Args:
        skeleton: The model without weights; its own tensors are the reference's.
        converter: Upstream's converter of the model, for its tensor mapping.
        variants: What is compared; the first one is the reference.

    Attributes:
        broken: Variant -> the first layer after which it gave NaN or infinite values.
    """

    skeleton: Skeleton
    converter: Converter
    variants: Sequence[Variant]
    _maps: dict[str, BlockMap] = field(default_factory=dict)
    _outside: list[_Placed] = field(default_factory=list)
    _own: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def __post_init__(self) -> None:
        self._places = find_model_doors(self.skeleton)
        self._rounding = RoundedInputs()
        self.broken: dict[str, str] = {}

    def run(
        self, batches: Sequence[Batch], *, report: Report = no_report, should_stop: ShouldStop
    ) -> list[TokenScores]:
        """Scores of every variant over all batches, in the order of ``variants``.

        ``report`` is told steps; a step is one batch of one variant through one door.

        Raises:
            StopRequested: when asked to stop.
            PackagingError: as of :class:`~worker.models.evaluate.variants.QuantizedFile`.
        """
        outputs: dict[int, torch.Tensor] = {}
        pieces: list[list[TokenScores]] = [[] for _ in self.variants]
        jobs = [(variant, number) for number in range(len(batches)) for variant in range(len(self.variants))]
        compared: dict[int, ReferenceBatch] = {}
        done = 0

        def body(job: int) -> Callable[[], None]:
            return lambda: outputs.__setitem__(job, self._forward(batches[jobs[job][1]]))

        def step(_door: Door) -> None:
            nonlocal done
            done += 1
            report(WorkProgress(done, len(jobs) * len(self._places.doors)))
            for job in list(outputs):
                variant, number = jobs[job]
                logits = outputs.pop(job)
                if variant == 0:
                    compared.clear()
                    compared[number] = ReferenceBatch(logits.float(), batches[number].targets.to(logits.device))
                    pieces[0].append(compared[number].own_scores())
                else:
                    pieces[variant].append(compared[number].compare(logits))

        self._load_outside()
        lockstep = Lockstep(
            self._places.doors,
            lambda door, group: self._enter(door, jobs[group[0]][0]),
            self._leave,
            self._scope,
            groups=lambda door, waiting: self._grouped(door, waiting, jobs),
            select=lambda job: self._select(jobs[job][0]),
        )

        def running() -> Batch:
            return batches[jobs[lockstep.running][1]]

        with (
            self._scope(),
            self._scored_only(running),
            self._real_ids(running),
            self._watched(lambda: self.variants[jobs[lockstep.running][0]].name),
        ):
            lockstep.run([body(job) for job in range(len(jobs))], step, should_stop)
        return [TokenScores.joined(piece) for piece in pieces]

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with torch.no_grad(), self._rounding:
            yield

    @contextmanager
    def _watched(self, variant: Callable[[], str]) -> Iterator[None]:
        """Note in which layer a variant's values stop being numbers."""

        def look(door: Door, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden, torch.Tensor) and not bool(torch.isfinite(hidden).all()):
                self.broken.setdefault(variant(), door.name)

        hooks = [
            door.module.register_forward_hook(lambda _module, _inputs, output, door=door: look(door, output))
            for door in self._places.doors
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _forward(self, batch: Batch) -> torch.Tensor:
        """Logits of the scored positions, ``(n, vocabulary)``."""
        logits: torch.Tensor = self.skeleton.model(input_ids=batch.ids.to(self.skeleton.device), use_cache=False).logits
        return logits[0]

    @contextmanager
    def _scored_only(self, batch: Callable[[], Batch]) -> Iterator[None]:
        """The head sees the hidden states of scored positions alone, ``(1, n, hidden)``."""
        head = self._places.head.module
        original = head.forward

        def forward(hidden: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            current = batch()
            scored = hidden[current.rows.to(hidden.device), current.positions.to(hidden.device)]
            return original(scored[None], *arguments, **named)

        head.forward = forward
        try:
            yield
        finally:
            head.forward = original

    @contextmanager
    def _real_ids(self, batch: Callable[[], Batch]) -> Iterator[None]:
        """The embedding looks up the batch's ids: a model may have moved them to where its embedding is.

        That is nowhere while the embedding is not loaded, and what is looked up there is noise.
        """
        embedding = self._places.embedding.module
        original = embedding.forward

        def forward(ids: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            real = batch().ids.to(self.skeleton.device) if ids.is_meta else ids
            return original(real, *arguments, **named)

        embedding.forward = forward
        try:
            yield
        finally:
            embedding.forward = original

    def _grouped(self, door: Door, waiting: Sequence[int], jobs: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Passes by variant; at the head by batch first."""
        if door is self._places.head:
            return [[job] for job in sorted(waiting, key=lambda job: (jobs[job][1], jobs[job][0]))]
        return [
            members
            for variant in range(len(self.variants))
            if (members := [job for job in waiting if jobs[job][0] == variant])
        ]

    def _select(self, variant: int) -> None:
        self.skeleton.put(self._outside[variant].values)
        self._rounding.use(self._outside[variant].rounded())

    def _enter(self, door: Door, variant: int) -> None:
        self.skeleton.put(self._outside[variant].values)
        placed = self._placed(variant, door.name, self._reference_weights(door))
        self.skeleton.put(placed.values)
        self._rounding.use([*self._outside[variant].rounded(), *placed.rounded()])

    def _leave(self, door: Door, _group: Sequence[int]) -> None:
        self.skeleton.free(self._places.prefixes[door.name])

    def _reference_weights(self, door: Door) -> dict[str, torch.Tensor]:
        """The reference's parameters of a door; read once for all variants that pass."""
        if self._own[0] != door.name:
            self._own = ("", {})
            loaded = self.skeleton.load(self._places.prefixes[door.name])
            self._own = (door.name, {name: tensor.detach() for name, tensor in loaded})
        return self._own[1]

    def _load_outside(self) -> None:
        """Weights that no door has, of every variant: the last norm, and whatever an architecture adds."""
        if self._outside:
            return
        inside = (*self._places.prefixes.values(), *(f"{name}." for name in self._places.prefixes))
        own = {name: tensor.detach() for name, tensor in self.skeleton.load("", without=inside)}
        self._outside = self._of_all("", {name: tensor for name, tensor in own.items() if not tensor.is_meta})

    def _of_all(self, name: str, own: Mapping[str, torch.Tensor]) -> list[_Placed]:
        return [self._placed(variant, name, own) for variant in range(len(self.variants))]

    def _placed(self, variant: int, name: str, own: Mapping[str, torch.Tensor]) -> _Placed:
        if name not in self._maps:
            shapes = {name: tensor.shape for name, tensor in own.items()}
            self._maps[name] = map_block(shapes, self.skeleton.to_checkpoint, self.converter)
        destination = Destination(own, self._maps[name], self.skeleton)
        chosen = self.variants[variant]
        return _Placed({**own, **chosen.weights(destination)}, chosen.input_types(destination))
