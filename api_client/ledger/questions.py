"""What workers can be asked about files, and what they answer. ``asking`` carries a question there and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import (
    DEFAULT_CONTEXT,
    MeasuredType,
    ModelShape,
    Recommendation,
    parse_target,
    recommend,
)
from api_client.ledger.asking import QUESTION_TIMEOUT_S, QuestionKind
from api_client.runs.checkpoints import CheckpointList
from api_client.runs.listing import RunsList


class Asker(Protocol):
    """Who takes a question to the workers: a ``PackagingClient``."""

    def ask(self, kind: QuestionKind, parameters: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        """Ask, and wait for the answer."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    """Machine that answered."""


class RunAnswer(_Answer):
    """What a run's directory holds."""

    listing: CheckpointList
    base_model: str | None = None
    """Base model that the newest adapter names, as it names it; on the worker it may lie elsewhere."""


class SizesAnswer(_Answer):
    """What a model's files will be."""

    model: str
    """Directory or file that was measured."""
    shape: ModelShape
    sizes: dict[QuantType, int]
    """Bytes of the file of every type."""
    memory_bytes: int
    """Memory of the machine that answered, for the target ``cpu``."""
    measured: tuple[MeasuredType, ...] = ()
    """Figures of earlier reports of models of its architecture, the newest first."""
    projector_bytes: int | None = None
    """Bytes of the projector for pictures or sound; ``None`` where it has none, or an older worker answered."""

    def judge(self, target: str, context: int) -> Recommendation:
        """Every type at a place to run."""
        place = parse_target(target, self.memory_bytes)
        return recommend(self.shape, self.sizes, place, context, self.measured)


class RunsAnswer(_Answer):
    """The training runs that a worker sees."""

    listing: RunsList


class DiskRoom(BaseModel):
    """Room on another disk than the one that was asked about."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: str
    free_bytes: int


class SpaceAnswer(_Answer):
    """Room on the disk of a directory, which need not exist yet."""

    path: str
    exists: bool
    free_bytes: int
    total_bytes: int
    scratch: DiskRoom | None = None
    """Where jobs work, where that is on another disk; ``None``, too, from an older worker."""


class Questions:
    """Asks workers. Safe to use from several threads.

    Args:
        client: The service to ask.
        timeout_s: Longest wait for one answer.

    Raises:
        PackagingError: every method raises ``question_unanswered`` when no worker answers in time, and what the worker
            found wrong: ``path_not_allowed``, ``base_model_not_found``, ``request_invalid`` and others.
    """

    def __init__(self, client: Asker, timeout_s: float = QUESTION_TIMEOUT_S) -> None:
        self._client = client
        self._timeout_s = timeout_s

    def checkpoints(self, run: str) -> RunAnswer:
        """The checkpoints of a training run: an absolute path on the workers, or ``s3://``."""
        return RunAnswer.model_validate(self._ask(QuestionKind.CHECKPOINTS, {"run": run}))

    def sizes(self, model: str) -> SizesAnswer:
        """Sizes of a base model (a directory or ``s3://``), of a checkpoint's base model, or of a GGUF file."""
        return SizesAnswer.model_validate(self._ask(QuestionKind.SIZES, {"model": model}))

    def recommend(self, model: str, target: str, context: int = DEFAULT_CONTEXT) -> tuple[SizesAnswer, Recommendation]:
        """Judge every quant type for a place to run; ``cpu`` means the memory of the worker that answers."""
        parse_target(target, 1)  # refuse a misspelt one before a worker is asked
        answer = self.sizes(model)
        return answer, answer.judge(target, context)

    def runs(self, search: str = "") -> RunsAnswer:
        """Training runs below the workers' run roots, newest first; those whose path holds a text."""
        return RunsAnswer.model_validate(self._ask(QuestionKind.RUNS, {"search": search}))

    def space(self, path: str) -> SpaceAnswer:
        """Room for outputs in a local directory of the workers."""
        return SpaceAnswer.model_validate(self._ask(QuestionKind.SPACE, {"path": path}))

    def _ask(self, kind: QuestionKind, parameters: Mapping[str, str]) -> dict[str, Any]:
        return self._client.ask(kind, parameters, self._timeout_s)
