"""Forward and backward through a model one layer at a time, with the layers' inputs kept on disk.

Forward, every batch runs the model's own ``forward`` in a thread and stops at the embedding, at each layer and at the
head (:mod:`worker.models.imatrix.lockstep`). What a layer is given and what it gives is kept on disk. What the layer
gives goes back into the thread through a gate, where a graph begins that autograd records while the thread runs on to
its next door: so the few operations between layers (scaling, norms, rotary tables) need not be known either.

At the head each batch turns back at once, so that the logits of one batch exist at a time. For every position a label
is drawn from the model's own distribution ``p``; the gradient of its log-likelihood at the logits is ``onehot - p``.

Backward, layer by layer: load the layer, run it again on what it was given, with autograd inside this one layer, and
hand the gradient at its inputs back through the recorded graph to the gates of earlier layers.

Memory: the weights outside the doors, one layer, the activations of one batch within it, and gradients at the hidden
states of all batches. Disk: hidden states of all batches at every layer. After a stop the next run with the same shelf
takes over finished layers of either direction, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

from worker.models.evaluate.doors import ModelDoors
from worker.models.imatrix.lockstep import Door, Lockstep
from worker.models.imatrix.model import Skeleton
from worker.models.imatrix.tap import ActivationTap, Gathered
from worker.models.sensitivity.gates import Slot, Visit, begin_graph, drawn_gradient, filled
from worker.models.sensitivity.shelf import Shelf, map_tensors, tensors_in
from worker.models.sensitivity.tap import GradientTap, LookupSums, OutputSums
from worker.setting import Report, WorkProgress
from worker.stop import ShouldStop, StopRequested

_BACKWARD_STEPS = 3
"""Steps that going back through a layer counts for: once forward again, and twice as much for the gradients."""


class TwoWay:
    """One run over batches.

    Args:
        skeleton: The model without weights.
        places: Its doors.
        batches: Token ids, int64 ``(sequences, tokens)`` each.
        shelf: What an earlier attempt left, and where this one leaves its own.
        seed: Of the labels.

    Attributes:
        inputs: What was gathered forward.
        gradients: What was gathered backward.
    """

    def __init__(
        self, skeleton: Skeleton, places: ModelDoors, batches: Sequence[torch.Tensor], shelf: Shelf, seed: int
    ) -> None:
        self.inputs = ActivationTap()
        self.gradients = GradientTap()
        self._skeleton = skeleton
        self._places = places
        self._batches = batches
        self._shelf = shelf
        self._seed = seed
        self._start = torch.zeros(1, device=skeleton.device, requires_grad=True)
        self._visits: list[list[Visit]] = [[] for _ in batches]
        self._answers: list[list[torch.Tensor]] = [[] for _ in batches]
        self._pending: dict[tuple[int, int], list[torch.Tensor | None]] = {}
        self._originals = [door.module.forward for door in places.doors]
        self._lockstep: Lockstep | None = None
        self._inside = False
        self._head: tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]] | None = None
        self._done_steps = 0

    def run(self, report: Report, should_stop: ShouldStop) -> None:
        """Go both ways; the sums are in the attributes afterwards.

        Raises:
            StopRequested: when asked to stop.
        """
        outputs: dict[int, torch.Tensor] = {}
        first, head = self._take_up(), len(self._places.doors) - 1
        total = len(self._batches) * len(self._places.doors) * (1 + _BACKWARD_STEPS)

        def tell(steps: int) -> None:
            self._done_steps += steps
            report(WorkProgress(min(self._done_steps, total), total))

        def body(batch: int) -> Callable[[], None]:
            return lambda: outputs.__setitem__(batch, self._forward(batch))

        def step(_door: Door) -> None:
            tell(1)
            for batch in list(outputs):
                logits = outputs.pop(batch)
                if first is None:
                    self._turn(batch, logits)
                    tell(_BACKWARD_STEPS)

        self._load_outside()
        with self._gated():
            self._lockstep = Lockstep(self._places.doors, partial(self._enter, first), self._leave, self._scope)
            self._lockstep.run([body(batch) for batch in range(len(self._batches))], step, should_stop)
        last = max(len(visits) for visits in self._visits) - 2
        if first is None:
            self._keep_state(last + 1)
        else:  # what was taken over counts as done
            tell(total - first * len(self._batches) * _BACKWARD_STEPS - self._done_steps)
        for number in range(last if first is None else first - 1, -1, -1):
            for _ in self._back(number, head):
                tell(_BACKWARD_STEPS)
                if should_stop():
                    raise StopRequested
            self._keep_state(number)

    # forward

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """What a batch's thread runs in: the operations between doors are recorded, and tapped where they multiply."""
        with torch.enable_grad(), self.inputs, self.gradients:
            yield

    def _forward(self, batch: int) -> torch.Tensor:
        ids = self._batches[batch].to(self._skeleton.device)
        logits: torch.Tensor = self._skeleton.model(input_ids=ids, use_cache=False).logits
        return logits

    @contextmanager
    def _gated(self) -> Iterator[None]:
        """Every door keeps what passes it."""
        for number, door in enumerate(self._places.doors):
            door.module.forward = partial(self._pass, number)
        try:
            yield
        finally:
            for door, original in zip(self._places.doors, self._originals, strict=True):
                door.module.forward = original

    def _pass(self, door: int, *arguments: Any, **named: Any) -> Any:
        """One batch passes a door, in the calling thread."""
        original = self._originals[door]
        if self._inside or self._lockstep is None:  # a layer that calls another one
            return original(*arguments, **named)
        batch = self._lockstep.running
        number = len(self._visits[batch])
        if number == 0:  # a model may have moved ids to where its embedding is, which is nowhere while it is not loaded
            ids = self._batches[batch].to(self._skeleton.device)
            arguments, named = map_tensors((arguments, named), lambda tensor: ids if tensor.is_meta else tensor)
        self._inside = True
        try:
            visit = self._record(door, batch, arguments, named)
            if door == len(self._places.doors) - 1:
                return self._at_head(visit, original)
            name = _out(number, batch)
            if _done(number) not in self._shelf:
                with torch.no_grad(), self.inputs:
                    self._shelf.put(name, map_tensors(original(*arguments, **named), torch.Tensor.detach))
            return self._gate(self._shelf.get(name), number, batch)
        finally:
            self._inside = False

    def _record(self, door: int, batch: int, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Visit:
        number = len(self._visits[batch])
        visit = Visit(door, None)
        own: list[torch.Tensor] = []

        def keep(tensor: torch.Tensor) -> Any:
            if not tensor.requires_grad:
                return tensor
            visit.edges.append(get_gradient_edge(tensor))
            index = next((i for i, answer in enumerate(self._answers[batch]) if answer is tensor), None)
            if index is None:
                visit.sources.append((_in(number, batch), len(own)))
                own.append(tensor.detach())
            else:
                visit.sources.append((_out(number - 1, batch), index))
            return Slot(len(visit.edges) - 1)

        visit.call = map_tensors((arguments, dict(named)), keep)
        if own:
            self._shelf.put(_in(number, batch), own)
        self._visits[batch].append(visit)
        return visit

    def _gate(self, answer: Any, number: int, batch: int) -> Any:
        """What a layer gave, as the beginning of a graph."""
        count = len(tensors_in(answer))
        made: list[torch.Tensor] = []

        def gate(tensor: torch.Tensor) -> torch.Tensor:
            keep = partial(self._arrived, number, batch, len(made), count)
            made.append(begin_graph(self._start, tensor, keep) if tensor.is_floating_point() else tensor)
            return made[-1]

        gated = map_tensors(answer, gate)
        self._answers[batch] = made
        return gated

    def _arrived(self, number: int, batch: int, index: int, count: int, gradient: torch.Tensor) -> None:
        gradients = self._pending.setdefault((number, batch), [None] * count)
        before = gradients[index]
        gradients[index] = gradient.detach() if before is None else before + gradient.detach()

    # the turn

    def _at_head(self, visit: Visit, original: Callable[..., Any]) -> torch.Tensor:
        if self._head_is_done:
            ids = self._batches[0]
            return torch.zeros(*ids.shape, 1, device=self._skeleton.device)
        leaves, (arguments, named) = self._restored(visit)
        with torch.enable_grad(), self.inputs:
            logits: torch.Tensor = original(*arguments, **named)
        gated: torch.Tensor = logits.detach().requires_grad_()
        self._head = (logits, gated, leaves)
        return gated

    def _turn(self, batch: int, final: torch.Tensor) -> None:
        """Draw labels, and bring the gradient at the logits back to the last layer."""
        assert self._head is not None
        logits, gated, leaves = self._head
        self._head = None
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + batch)
        gradient, squares = drawn_gradient(final, gated, generator)
        self._add_head(squares)
        torch.autograd.backward(logits, gradient)
        self._hand_back(self._visits[batch][-1], leaves)

    def _add_head(self, squares: torch.Tensor) -> None:
        """Add expected squared gradients ``(..., vocabulary)`` at the head's outputs."""
        name = self.inputs.name_of(self._places.head.module.weight)  # type: ignore[arg-type]
        if name is None or name not in self.inputs.gathered:
            return
        sums = squares.reshape(-1, squares.shape[-1]).sum(dim=0, dtype=torch.float64)[None]
        entry = self.gradients.outputs.setdefault(
            name, OutputSums(self.inputs.gathered[name].axis, torch.zeros_like(sums))
        )
        entry.sums += sums

    # backward

    def _back(self, number: int, head: int) -> Iterator[None]:
        """Go back through one visit of every batch."""
        with ExitStack() as stack:
            entered: int | None = None
            for batch, visits in enumerate(self._visits):
                gradients = self._pending.pop((number, batch), None)
                if number >= len(visits) or visits[number].door == head:
                    continue
                visit = visits[number]
                if gradients is not None:
                    if entered != visit.door:
                        stack.pop_all().close()
                        stack.enter_context(self._loaded(self._places.doors[visit.door]))
                        entered = visit.door
                    self._through(visit, gradients)
                yield

    def _through(self, visit: Visit, gradients: Sequence[torch.Tensor | None]) -> None:
        leaves, (arguments, named) = self._restored(visit)
        with torch.enable_grad(), self.gradients:
            answer = self._originals[visit.door](*arguments, **named)
        pairs = [
            (tensor, gradient)
            for tensor, gradient in zip(tensors_in(answer), gradients, strict=True)
            if gradient is not None and tensor.requires_grad
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
        self._hand_back(visit, leaves)

    def _restored(self, visit: Visit) -> tuple[list[torch.Tensor], Any]:
        """Leaves for the slots of a call, and the call with copies of them, which the layer may write to."""
        files = {name: tensors_in(self._shelf.get(name)) for name, _ in visit.sources}
        leaves = [files[name][index].requires_grad_() for name, index in visit.sources]
        return leaves, filled(visit.call, [leaf.clone() for leaf in leaves])

    def _hand_back(self, visit: Visit, leaves: Sequence[torch.Tensor]) -> None:
        """Gradients at a door's inputs to the gates that they came from."""
        pairs = [(edge, leaf.grad) for edge, leaf in zip(visit.edges, leaves, strict=True) if leaf.grad is not None]
        if pairs:
            torch.autograd.backward([edge for edge, _ in pairs], [gradient for _, gradient in pairs], retain_graph=True)

    # weights

    def _load_outside(self) -> None:
        inside = (*self._places.prefixes.values(), *(f"{door.name}." for door in self._places.doors))
        outside = self._frozen("", inside)
        self.inputs.register(outside)
        self.gradients.register(outside)

    def _frozen(self, prefix: str, without: tuple[str, ...] = ()) -> list[tuple[str, torch.Tensor]]:
        """Weights, loaded; the gradients that are asked for are those of what runs through them."""
        loaded = [(name, tensor) for name, tensor in self._skeleton.load(prefix, without) if not tensor.is_meta]
        return [(name, tensor.requires_grad_(False)) for name, tensor in loaded]

    def _enter(self, first: int | None, door: Door, group: Sequence[int]) -> None:
        number = len(self._visits[group[0]])
        if door is self._places.head and first is not None:
            return
        if _done(number) in self._shelf:
            for name, (axis, sums, counts) in self._shelf.get(_done(number)).items():
                self.inputs.gathered[name] = Gathered(axis, sums, counts)
            return
        self.inputs.register(self._frozen(self._places.prefixes[door.name]))

    def _leave(self, door: Door, group: Sequence[int]) -> None:
        prefix = self._places.prefixes[door.name]
        number = len(self._visits[group[0]]) - 1
        if door is not self._places.head and _done(number) not in self._shelf:
            gathered = {
                name: (entry.axis, entry.sums, entry.counts)
                for name, entry in self.inputs.gathered.items()
                if name.startswith(prefix)
            }
            self._shelf.put(_done(number), gathered)
        self.inputs.forget(prefix)
        self._skeleton.free(prefix)

    @contextmanager
    def _loaded(self, door: Door) -> Iterator[None]:
        prefix = self._places.prefixes[door.name]
        self.gradients.register(self._frozen(prefix))
        try:
            yield
        finally:
            self.gradients.forget(prefix)
            self._skeleton.free(prefix)

    # what is kept

    def _take_up(self) -> int | None:
        """The last visit, counted from the front, that an earlier attempt went back through; None where it did not."""
        numbers = [number for number in range(_MOST_VISITS) if _state(number) in self._shelf]
        self._head_is_done = bool(numbers)
        if not numbers:
            return None
        state = self._shelf.get(_state(numbers[0]))
        self._pending = {(number, batch): gradients for number, batch, gradients in state["pending"]}
        self.gradients.outputs = {name: OutputSums(*entry) for name, entry in state["outputs"].items()}
        self.gradients.lookups = {name: LookupSums(*entry) for name, entry in state["lookups"].items()}
        head = state["head"]
        self.inputs.gathered |= {name: Gathered(*entry) for name, entry in head.items()}
        return numbers[0]

    def _keep_state(self, number: int) -> None:
        """Write down how far the way back is, and forget the step before."""
        head = self._places.prefixes[self._places.head.name]
        self._shelf.put(
            _state(number),
            {
                "pending": [(*key, gradients) for key, gradients in self._pending.items()],
                "outputs": {name: (entry.axis, entry.sums) for name, entry in self.gradients.outputs.items()},
                "lookups": {name: (entry.rows, entry.columns) for name, entry in self.gradients.lookups.items()},
                "head": {
                    name: (entry.axis, entry.sums, entry.counts)
                    for name, entry in self.inputs.gathered.items()
                    if name.startswith(head)
                },
            },
        )
        self._shelf.drop(_state(number + 1))


_MOST_VISITS = 10_000


def _in(number: int, batch: int) -> str:
    return f"in-{number}-{batch}"


def _out(number: int, batch: int) -> str:
    return f"out-{number}-{batch}"


def _done(number: int) -> str:
    return f"done-{number}"


def _state(number: int) -> str:
    return f"state-{number}"
