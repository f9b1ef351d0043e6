"""Choose between mixtures of one size by measurement: predictions rank well, but only measured ones are believed.

A handful of candidates around the optimum is measured over the same tokens, side by side with the model itself
(:mod:`worker.models.evaluate.side_by_side`); nothing is written. They are told apart by pairs: their divergences at the
same tokens go up and down together, so that a difference is much surer than either figure.

A second round corrects the prices by what the first one measured. Predicted KLDs of embedding, head and layers are
added up with one factor each, which bring predictions and measurements closest together; prices times these factors are
allocated once more, and the new mixtures are measured beside neighbours of the best so far.

The stock mixture is always among the candidates. Where nothing beats it, it wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from api_client.contract.quality import Divergence
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.figures import figures
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.fit.candidates import Candidate, Shared
from worker.models.fit.prices import Prices, TensorPrice
from worker.models.gguf.types import GGMLType
from worker.models.mixture.names import OUTPUT_NAME, TOKEN_EMBEDDING_NAMES
from worker.models.quantize.imatrix_data import ImatrixData
from worker.setting import ON_THIS_MACHINE, WorkSetting

STOCK = "stock"
"""Name of the candidate that is no fit."""
EMBEDDING, HEAD, LAYERS = "embedding", "head", "layers"
"""Parts of a model whose predictions are corrected apart."""
_HOPELESS = 1.2
"""Predicted KLD over the best predicted one, above which a candidate is not worth a pass."""
_PULL = 0.1
"""Weight of the pull of each part's factor to the common one, beside a measurement's 1."""
Types = Mapping[str, str]
"""GGUF name -> ggml type name."""
Allocate = Callable[[Prices], Types | None]
"""The mixture of least predicted KLD within the bytes; None where these prices allow none."""


@dataclass(frozen=True)
class FitSubject:
    """What is measured with: the model, its unquantized file, the matrix, and text that was not calibrated on.

    Attributes:
        base: The base model.
        overlay: What merges the adapter.
        source: Unquantized GGUF file, or the first of its shards.
        matrix: What files are quantized with.
        sequences: What is run.
    """

    base: BaseModel
    overlay: Overlay | None
    source: Path
    matrix: ImatrixData | None
    sequences: Sequence[TokenSequence]


@dataclass(frozen=True)
class Measured:
    """A candidate and its figures.

    Attributes:
        name: How it came about.
        types: Its mixture, of the tensors that are priced.
        predicted: Predicted mean KLD in nats, by the prices as they were given.
        divergence: As measured.
    """

    name: str
    types: Types
    predicted: float
    divergence: Divergence

    @property
    def kld(self) -> float:
        """Measured mean KLD in nats."""
        return self.divergence.mean_kld.value


@dataclass(frozen=True)
class Selection:
    """What was measured and what is taken.

    Attributes:
        measured: All candidates, best first.
        factors: By which predictions of embedding, head and layers come closest to what was measured.
    """

    measured: tuple[Measured, ...]
    factors: Mapping[str, float]

    @property
    def chosen(self) -> Measured:
        """The candidate with the least mean KLD; the stock mixture where none is below it."""
        best = self.measured[0]
        stock = next((candidate for candidate in self.measured if candidate.name == STOCK), None)
        return stock if stock is not None and stock.kld <= best.kld else best


def candidates(prices: Prices, allocate: Allocate, best: Types | None = None) -> Iterator[tuple[str, Types]]:
    """Mixtures around the optimum: the optimum, without i-quants, embedding and head one step up and down."""
    allocation = allocate(prices) if best is None else best
    if allocation is None:
        return
    if best is None:
        yield "fit", allocation
        if any(_is_iq(name) for tensor in prices.tensors for name in tensor.kld_of):
            yield from _named("without i-quants", allocate(restricted(prices, lambda _, name: not _is_iq(name))))
    for tensor in prices.tensors:
        part = part_of(tensor.name)
        if part == LAYERS:
            continue
        for step, word in ((1, "up"), (-1, "down")):
            neighbour = _neighbour(tensor, allocation[tensor.name], step)
            if neighbour is not None:
                pinned = restricted(
                    prices,
                    lambda name, tensor_type, t=tensor.name, n=neighbour: name != t or tensor_type == n,  # type: ignore[misc]
                )
                yield from _named(f"{part} {word}: {neighbour}", allocate(pinned))


def promising(prices: Prices, drawn: Iterator[tuple[str, Types]]) -> dict[str, Types]:
    """Candidates by name, without those whose predicted KLD is a fifth above the best one's: each costs a pass."""
    mixtures = dict(drawn)
    klds = {name: predicted(prices, types) for name, types in mixtures.items()}
    return {name: types for name, types in mixtures.items() if klds[name] <= _HOPELESS * min(klds.values())}


def select(
    prices: Prices,
    stock: Types,
    allocate: Allocate,
    subject: FitSubject,
    *,
    known: Prices | None = None,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> Selection:
    """Measure candidates in two rounds and take the best.

    Args:
        prices: The price list of the types that may be chosen.
        stock: The stock mixture of the same or fewer bytes, of the tensors that are priced.
        allocate: The allocation within the bytes.
        subject: What is measured with.
        known: The price list with the stock mixture's types, where ``prices`` lacks some.
        setting: Is told tokens, and asked between the steps.

    Raises:
        PackagingError: as :func:`worker.models.evaluate.run.evaluate_files`.
        StopRequested: as asked.
    """
    known = known or prices
    first = measure(known, {STOCK: stock} | promising(known, candidates(prices, allocate)), subject, setting=setting)
    factors = correction(known, first)
    corrected = scaled(prices, factors)
    best = min(first, key=lambda candidate: candidate.kld)
    again = {
        f"corrected {name}": types for name, types in promising(corrected, candidates(corrected, allocate)).items()
    }
    if best.name not in ("fit", STOCK):
        around = candidates(corrected, allocate, best.types)
        again |= {f"{best.name}, {name}": types for name, types in promising(corrected, around).items()}
    tried = [dict(candidate.types) for candidate in first]
    fresh = {name: types for name, types in again.items() if dict(types) not in tried}
    second = measure(known, fresh, subject, setting=setting) if fresh else []
    return Selection(tuple(sorted([*first, *second], key=lambda candidate: candidate.kld)), factors)


def measure(
    prices: Prices, mixtures: Mapping[str, Types], subject: FitSubject, *, setting: WorkSetting = ON_THIS_MACHINE
) -> list[Measured]:
    """Measure mixtures side by side; equal ones once, under the first name."""
    distinct: dict[str, Types] = {}
    for name, types in mixtures.items():
        if dict(types) not in [dict(other) for other in distinct.values()]:
            distinct[name] = types
    shared = Shared()
    with ExitStack() as stack:
        files = []
        for name, types in distinct.items():
            own = {tensor: GGMLType[tensor_type] for tensor, tensor_type in types.items()}
            files.append(Candidate(name, subject.source, own, subject.matrix, shared))
            stack.callback(files[-1].close)
        scores = evaluate_files(
            subject.base,
            subject.overlay,
            files,
            subject.sequences,
            Budget(None, first_tokens=sum(len(sequence.ids) for sequence in subject.sequences)),
            setting=setting,
        )
    for file in files:
        file.check_complete()
    return [
        Measured(name, types, predicted(prices, types), figures(scores.reference, scores.others[name]))
        for name, types in distinct.items()
    ]


def part_of(name: str) -> str:
    """Part of the model that a tensor belongs to."""
    if name == OUTPUT_NAME:
        return HEAD
    return EMBEDDING if name in TOKEN_EMBEDDING_NAMES else LAYERS


def predicted(prices: Prices, types: Types, part: str | None = None) -> float:
    """Predicted mean KLD of a mixture, or of one part of it."""
    chosen = (tensor for tensor in prices.tensors if part is None or part_of(tensor.name) == part)
    return sum(tensor.kld_of[types[tensor.name]] for tensor in chosen)


def correction(prices: Prices, measured: Sequence[Measured]) -> dict[str, float]:
    """Factors of the parts that bring predicted and measured KLDs closest, relative to the measured ones.

    Least squares with a pull to one common factor, since candidates differ little; kept between a fifth and five times
    the common one.
    """
    parts = sorted({part_of(tensor.name) for tensor in prices.tensors})
    goal = np.array([candidate.kld for candidate in measured])
    table = np.array([[predicted(prices, candidate.types, part) for part in parts] for candidate in measured])
    whole = table.sum(axis=1)
    usable = (goal > 0) & (whole > 0)
    if not usable.any():
        return dict.fromkeys(parts, 1.0)
    common = float(np.exp(np.mean(np.log(goal[usable] / whole[usable]))))
    rows = table[usable] * common / goal[usable][:, None]
    pull = _PULL * np.eye(len(parts))
    solved = np.linalg.lstsq(
        np.vstack([rows, pull]), np.concatenate([np.ones(len(rows)), np.full(len(parts), _PULL)]), rcond=None
    )[0]
    return {part: common * float(np.clip(value, 0.2, 5.0)) for part, value in zip(parts, solved, strict=True)}


def scaled(prices: Prices, factors: Mapping[str, float]) -> Prices:
    """Prices with the KLDs of each part multiplied."""
    return Prices(
        tuple(
            replace(
                tensor, kld_of={name: value * factors[part_of(tensor.name)] for name, value in tensor.kld_of.items()}
            )
            for tensor in prices.tensors
        )
    )


def _named(name: str, types: Types | None) -> Iterator[tuple[str, Types]]:
    if types is not None:
        yield name, types


def _is_iq(name: str) -> bool:
    return name.startswith("IQ")


def restricted(prices: Prices, keep: Callable[[str, str], bool]) -> Prices:
    """Prices of some types only, by tensor's and type's name; a tensor that would be left with none keeps all."""
    tensors = []
    for tensor in prices.tensors:
        kept = [name for name in tensor.kld_of if keep(tensor.name, name)] or list(tensor.kld_of)
        tensors.append(
            replace(
                tensor,
                bytes_of={name: tensor.bytes_of[name] for name in kept},
                kld_of={name: tensor.kld_of[name] for name in kept},
                error_of={name: tensor.error_of[name] for name in kept if name in tensor.error_of},
            )
        )
    return Prices(tuple(tensors))


def _neighbour(tensor: TensorPrice, present: str, step: int) -> str | None:
    """The type with the next more or next fewer bytes, of those that lose less for their bytes than any smaller one."""
    worth: list[str] = []
    for name in sorted(
        tensor.kld_of, key=lambda tensor_type: (tensor.bytes_of[tensor_type], tensor.kld_of[tensor_type])
    ):
        if not worth or tensor.kld_of[name] < tensor.kld_of[worth[-1]]:
            worth.append(name)
    if present not in worth:
        worth = sorted({*worth, present}, key=lambda tensor_type: tensor.bytes_of[tensor_type])
    at = worth.index(present) + step
    return worth[at] if 0 <= at < len(worth) else None
