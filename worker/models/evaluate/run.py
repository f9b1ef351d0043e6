"""Evaluate files: as many tokens as the time allows, all models over the same ones, resumable between rounds.

The sequences are taken in rounds. A first small round tells how long a token takes; what follows is one round that
fills the time that is left (``quick``), or rounds of a fixed size to the end of the text (``full``). Scores of finished
rounds are kept in a file, so that an attempt after a stop continues with the next one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.base_weights import base_tensors
from worker.models.evaluate.merged import MergedModel
from worker.models.evaluate.scores import TokenScores
from worker.models.evaluate.sequences import TokenSequence, batches
from worker.models.evaluate.side_by_side import SideBySide
from worker.models.evaluate.variants import BaseWeights, QuantizedFile, Reference, Variant
from worker.models.imatrix.compute import running_model
from worker.setting import ON_THIS_MACHINE, Report, WorkProgress, WorkSetting
from worker.stop import ShouldStop
from worker.storage.atomic import AtomicFile

BASE = "base"
"""Name of the base model without its adapter among the scores."""
BATCH_TOKENS = 2048
FIRST_ROUND_TOKENS = 1024
"""At most; of large models and many files as many as take :data:`_FIRST_ROUND_FLOP`, and one sequence at least."""
_FIRST_ROUND_FLOP = 3e12
"""About half a minute of two cores: the first round must not take all the time that there is."""
ROUND_TOKENS = 16384
"""Tokens of a round of ``full``; between rounds nothing is lost when it is stopped."""


@dataclass(frozen=True)
class Scores:
    """Scores of all models over the same tokens.

    Attributes:
        reference: Of the model that was trained.
        others: By name: the files, and :data:`BASE` where there is an adapter.
        parts: Part of the text of each scored token.
        tokens: Tokens that were run, those that only give context included.
        seconds: How long it took, earlier attempts included.
        refused: File -> why it has no scores.
    """

    reference: TokenScores
    others: Mapping[str, TokenScores]
    parts: tuple[str, ...]
    tokens: int
    seconds: float
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Budget:
    """How much may be run, and in which parts.

    Attributes:
        seconds: Time for everything but the first round; None for all sequences.
        kept: File that finished rounds are kept in, from which the next attempt goes on; none where not given.
        first_tokens: Tokens of the first round, which tells how long one takes; by the models' size where None.
    """

    seconds: float | None
    kept: Path | None = None
    first_tokens: int | None = None


def evaluate_files(
    base: BaseModel,
    overlay: Overlay | None,
    files: Sequence[QuantizedFile],
    sequences: Sequence[TokenSequence],
    budget: Budget,
    *,
    reference: QuantizedFile | None = None,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> Scores:
    """Run reference, base and files over the sequences and score every token.

    Args:
        base: The base model; no code in its directory is run.
        overlay: The adapter's updates, or None where the base model itself was packaged.
        files: The files, open.
        sequences: What to run, most important first; :func:`worker.models.evaluate.sequences.spread` mixes parts.
        budget: How many of them, and where finished rounds are kept.
        reference: A file that everything is compared with in place of the merged model, named
            :data:`~api_client.contract.quality.REFERENCE`; base and overlay are then the base among the scores.
        setting: Is told tokens, and asked between the steps.

    Raises:
        PackagingError: ``unsupported_architecture`` where transformers cannot run the model or it gives no
            probabilities; ``vocabulary_mismatch``, ``base_model_quantized``, ``base_model_invalid``.
        StopRequested: when asked to stop; finished rounds are kept.
    """
    if not sequences:
        raise PackagingError(ErrorCode.CALIBRATION_TOO_SHORT, "the evaluation text holds not one whole sequence")
    runner = _Runner.open(base, overlay, files, reference, setting)
    compared = files if reference is None else [reference, *files]
    rounds = _Rounds.take_up(budget.kept, _identity(base, overlay, compared, sequences), runner.names())
    total = sum(len(sequence.ids) for sequence in sequences)
    while rounds.sequences < len(sequences):
        chosen = rounds.next(sequences, budget, runner.first_tokens())
        if not chosen:
            break
        before = rounds.tokens
        size = sum(len(sequence.ids) for sequence in chosen)
        started = time.monotonic()
        told = partial(_tell, setting.report, before, size, total)
        scores = runner.run(chosen, told, setting.should_stop)
        rounds.add(chosen, scores, time.monotonic() - started, runner.refused())
        rounds.keep(budget.kept)
    return rounds.result()


def _tell(report: Report, before: int, size: int, total: int, part: float) -> None:
    report(WorkProgress(before + part * size, total))


class _Runner:
    """The models, ready to run any sequences."""

    def __init__(self, side_by_side: SideBySide, files: Sequence[QuantizedFile], model_class: str, rows: int) -> None:
        self._side_by_side = side_by_side
        self._files = files
        self._model_class = model_class
        self._rows = rows

    @classmethod
    def open(
        cls,
        base: BaseModel,
        overlay: Overlay | None,
        files: Sequence[QuantizedFile],
        reference: QuantizedFile | None,
        setting: WorkSetting,
    ) -> _Runner:
        merged = MergedModel.open(base, overlay, setting)
        skeleton = merged.skeleton
        variants: list[Variant] = [reference or Reference()]
        if overlay is not None:
            variants.append(BaseWeights(BASE, base_tensors(base, merged.weights)))
        elif reference is not None:
            variants.append(Reference(BASE))
        variants += files
        side_by_side = SideBySide(skeleton, merged.converter, variants)
        return cls(side_by_side, files, type(skeleton.model).__name__, skeleton.embedding_rows)

    def first_tokens(self) -> int:
        """Tokens of a first round that takes about half a minute."""
        weights = sum(parameter.numel() for parameter in self._side_by_side.skeleton.model.parameters())
        return min(FIRST_ROUND_TOKENS, int(_FIRST_ROUND_FLOP / (2 * weights * len(self.names()))))

    def names(self) -> list[str]:
        """Names of the models, the reference first."""
        return [variant.name for variant in self._side_by_side.variants]

    def run(
        self, sequences: Sequence[TokenSequence], report: Callable[[float], None], should_stop: ShouldStop
    ) -> list[TokenScores]:
        """Scores of every model, in the order of :meth:`names`."""
        highest = max(max(sequence.ids) for sequence in sequences)
        if highest >= self._rows:
            raise PackagingError(
                ErrorCode.VOCABULARY_MISMATCH,
                f"the tokenizer gives token {highest}, the embedding has {self._rows} rows",
            )
        with running_model(self._model_class):
            scores = self._side_by_side.run(
                batches(sequences, BATCH_TOKENS),
                report=lambda steps: report(steps.done / steps.total),
                should_stop=should_stop,
            )
        reference = self.names()[0]
        if reference in self._side_by_side.broken:
            layer = self._side_by_side.broken[reference]
            raise PackagingError(
                ErrorCode.WEIGHTS_NOT_FINITE,
                f"the model itself gives NaN or infinite values after {layer}, so nothing can be compared with it",
                fields={"layer": layer},
            )
        whole = self._side_by_side.variants[0]
        if isinstance(whole, QuantizedFile):
            whole.check_complete()
        return scores

    def refused(self) -> dict[str, str]:
        """Files that cannot be judged, known once any sequence has run: part of them has no place in the model."""
        broken = self._side_by_side.broken
        reasons = {name: f"it gives NaN or infinite values after {layer}" for name, layer in broken.items()}
        for file in self._files:
            try:
                file.check_complete()
            except PackagingError as error:
                reasons[file.name] = error.message
        return reasons


class _Rounds:
    """What was scored so far."""

    def __init__(self, identity: str, names: Sequence[str]) -> None:
        self._identity = identity
        self._names = list(names)
        self._pieces: list[list[TokenScores]] = [[] for _ in names]
        self.parts: list[str] = []
        self.sequences = 0
        self.tokens = 0
        self.seconds = 0.0
        self.refused: dict[str, str] = {}

    @classmethod
    def take_up(cls, kept: Path | None, identity: str, names: Sequence[str]) -> _Rounds:
        """Rounds of an earlier attempt at the same files and sequences, or none."""
        rounds = cls(identity, names)
        if kept is None or not kept.is_file():
            return rounds
        try:
            with np.load(kept, allow_pickle=False) as data:
                state = json.loads(str(data["state"]))
                if state["identity"] != identity or state["names"] != list(names):
                    return rounds
                pieces = [
                    [TokenScores(data[f"lp{i}"], data[f"kld{i}"], data[f"top{i}"])] for i in range(len(rounds._names))
                ]
        except (OSError, ValueError, KeyError):  # cut short or foreign: begin anew
            return rounds
        rounds._pieces = pieces
        rounds.parts = list(state["parts"])
        rounds.sequences, rounds.tokens, rounds.seconds = state["sequences"], state["tokens"], state["seconds"]
        rounds.refused = dict(state["refused"])
        return rounds

    def next(self, sequences: Sequence[TokenSequence], budget: Budget, first_tokens: int) -> list[TokenSequence]:
        """The sequences of the next round; empty where the time is used up."""
        if self.sequences == 0:
            limit: float = first_tokens if budget.first_tokens is None else budget.first_tokens
        elif budget.seconds is None:
            limit = ROUND_TOKENS
        else:
            limit = max(0.0, budget.seconds - self.seconds) * self.tokens / max(self.seconds, 1e-3)
        chosen: list[TokenSequence] = []
        taken = 0
        for sequence in sequences[self.sequences :]:
            taken += len(sequence.ids)
            if taken > limit and (chosen or self.sequences):
                break
            chosen.append(sequence)
        return chosen

    def add(
        self,
        sequences: Sequence[TokenSequence],
        scores: Sequence[TokenScores],
        seconds: float,
        refused: Mapping[str, str],
    ) -> None:
        """One more round."""
        self.refused = dict(refused)
        for pieces, piece in zip(self._pieces, scores, strict=True):
            pieces.append(piece)
        for batch in batches(sequences, BATCH_TOKENS):
            self.parts += batch.parts
        self.sequences += len(sequences)
        self.tokens += sum(len(sequence.ids) for sequence in sequences)
        self.seconds += seconds

    def keep(self, path: Path | None) -> None:
        """Write it all down; whole or not at all."""
        if path is None:
            return
        state = {
            "identity": self._identity,
            "names": self._names,
            "parts": self.parts,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "refused": self.refused,
        }
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
        for index, pieces in enumerate(self._pieces):
            joined = TokenScores.joined(pieces)
            arrays |= {
                f"lp{index}": joined.log_probability,
                f"kld{index}": joined.kld,
                f"top{index}": joined.same_top,
            }
        with AtomicFile(path) as file:
            np.savez(file, allow_pickle=False, state=np.array(json.dumps(state)), **arrays)

    def result(self) -> Scores:
        """All rounds together."""
        refused = self.refused
        joined = [TokenScores.joined(pieces) for pieces in self._pieces]
        others = {name: scores for name, scores in zip(self._names[1:], joined[1:], strict=True) if name not in refused}
        return Scores(joined[0], others, tuple(self.parts), self.tokens, self.seconds, refused)


def _identity(
    base: BaseModel, overlay: Overlay | None, files: Sequence[QuantizedFile], sequences: Sequence[TokenSequence]
) -> str:
    """Digest of what the scores depend on; files are told by their fingerprints."""
    digest = hashlib.sha256()
    digest.update(str(base.directory).encode())
    digest.update(repr(sorted(overlay.names()) if overlay is not None else None).encode())
    for file in files:
        digest.update(file.fingerprint.encode())
    for sequence in sequences:
        digest.update(repr((sequence.part, sequence.first_scored)).encode())
        digest.update(np.asarray(sequence.ids, np.int64).tobytes())
    return digest.hexdigest()
