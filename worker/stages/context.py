"""The seam: what a stage is given and what it gives back.

A stage is a plain function ``run(context) -> StageResult``. It knows files and tensors, nothing of Celery or Redis, and
can be called from a REPL with a :class:`StageContext` built by hand. What reaches outside goes through a
:class:`Reporter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, ModelPart, StageName
from api_client.contract.outputs import OutputNames
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions
from config.settings import StageSettings
from worker.setting import WorkProgress, WorkSetting
from worker.stages.facts import PublicFacts
from worker.stages.prepared import PRIVATE_FIELDS, Prepared
from worker.stop import StopRequested


class Reporter(Protocol):
    """A stage's way to the outside."""

    def log(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line to the job's log."""

    def progress(self, done: float, total: float, unit: str, detail: str = "") -> None:
        """Say how far the stage is; may be called often, the receiver thins it out."""

    def waits_to_publish(self, directory: str) -> None:
        """Say that the stage waits while another job publishes into a directory; empty: that it waits no longer."""

    def should_stop(self) -> bool:
        """Whether the stage should raise :class:`StopRequested` at the next safe point."""

    def confirm(self) -> None:
        """Ask whether this attempt is still the newest one, right before anything irreversible.

        Raises:
            LeaseLost: another attempt has taken over; nothing may be written any more.
        """


class LeaseLost(Exception):
    """This attempt is no longer the newest one."""


@dataclass(frozen=True)
class StageResult:
    """What a stage gives back.

    Attributes:
        artifacts: Its files.
        facts: What the manifest says of it: JSON values, and no path of this machine in them.
        duration_s: Filled in by the supervisor for stages that are done.
        prepared: Of ``prepare`` alone: what it hands to the stages after it. Not published.
    """

    artifacts: tuple[Artifact, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.facts, PublicFacts):
            object.__setattr__(self, "facts", PublicFacts(self.facts))

    @classmethod
    def read(cls, artifacts: tuple[Artifact, ...], stored: Mapping[str, Any], duration_s: float = 0.0) -> StageResult:
        """A result as :meth:`stored_facts` or a version before stored it.

        Raises:
            PackagingError: ``internal_error`` where it holds what prepare hands over, and not in a form that is known.
        """
        prepared = Prepared.read(stored)
        facts = {key: value for key, value in stored.items() if prepared is None or key not in PRIVATE_FIELDS}
        return cls(artifacts, PublicFacts.read(facts), duration_s, prepared)

    def stored_facts(self) -> dict[str, Any]:
        """Facts and what is handed over, as one JSON object for the job's record."""
        return dict(self.facts) | (self.prepared.to_json() if self.prepared is not None else {})


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """What a stage is told, as it travels from the supervisor to the stage's process.

    Attributes:
        job_id: The job.
        stage: The stage to run.
        attempt: Number of this attempt, from 1.
        request: The request, with the training task's paths filled in.
        options: The resolved switches and quant types.
        plan: The job's stages, in order.
        done: Results of the stages that succeeded before this one, with the files that its row reads; see ``handover``.
        previous: What this stage made before the job was replayed or went back: files that are still whole, by size and
            sha256, wherever they lie now. A stage may take over those of the same inputs.
        scratch: The job's scratch directory on this host; created. Outlives the attempt, so that a later attempt can
            resume from a partial file and its journal.
        settings: Limits and addresses of this machine.
        retries_left: Whether a transient failure of this attempt is followed by another one.
    """

    job_id: str
    stage: StageName
    attempt: int
    request: PackagingRequest
    options: ResolvedOptions
    plan: tuple[StageName, ...]
    done: Mapping[StageName, StageResult]
    scratch: Path
    settings: StageSettings
    previous: StageResult = StageResult()
    retries_left: bool = False


@dataclass(frozen=True, kw_only=True)
class StageContext(StageInput):
    """Everything a stage may use: what it is told, and its way to the outside.

    Attributes:
        report: Way to the outside.
    """

    report: Reporter

    @classmethod
    def of(cls, told: StageInput, report: Reporter) -> StageContext:
        """What a stage is told, with a way to the outside."""
        return cls(**{field.name: getattr(told, field.name) for field in fields(StageInput)}, report=report)

    @property
    def names(self) -> OutputNames:
        """How the job's files are called, by what ``prepare`` hands over."""
        prepared = self.prepared
        return OutputNames.of(self.request, self.options, prepared.base_name, prepared.checkpoint_name)

    @property
    def prepared(self) -> Prepared:
        """What ``prepare`` hands over.

        Raises:
            PackagingError: ``internal_error`` where it has not run.
        """
        result = self.done.get(StageName.PREPARE)
        if result is None or result.prepared is None:
            raise PackagingError(
                ErrorCode.INTERNAL_ERROR,
                f"{self.stage.value} was handed nothing of prepare's",
                fields={"stage": self.stage.value},
            )
        return result.prepared

    def artifacts(self, *kinds: ArtifactKind) -> tuple[Artifact, ...]:
        """Artifacts of the given kinds that earlier stages made, checked to be still there with the same size.

        Raises:
            PackagingError: ``artifact_lost``; ``internal_error`` for a kind that the stage's row does not read, and
                where a stage of the plan makes one and none was handed over.
        """
        for kind in kinds:
            if kind not in self.stage.spec.reads:
                raise self._fault(kind, f"{self.stage.value} asks for {kind.value}, which its row does not read")
        artifacts = tuple(a for result in self.done.values() for a in result.artifacts if a.kind in kinds)
        for kind in kinds:
            if self._is_due(kind) and all(artifact.kind is not kind for artifact in artifacts):
                raise self._fault(kind, f"{self.stage.value} was handed no {kind.value} of a job that has one")
        for artifact in artifacts:
            path = Path(artifact.path)
            size = path.stat().st_size if path.is_file() else None
            if size != artifact.size_bytes:
                raise PackagingError(
                    ErrorCode.ARTIFACT_LOST,
                    f"{path} is {'missing' if size is None else f'{size} bytes, expected {artifact.size_bytes}'}",
                    fields={"path": str(path), "expected_bytes": artifact.size_bytes, "found_bytes": size},
                )
        return artifacts

    def _is_due(self, kind: ArtifactKind) -> bool:
        """Whether a stage before this one makes such a file, and this one is handed it."""
        given = kind is ArtifactKind.IMATRIX and self.request.imatrix.mode == "file"
        if given and not self.stage.spec.reads_given:
            return False
        before = self.plan[: self.plan.index(self.stage)] if self.stage in self.plan else ()
        return any(kind in stage.spec.due(self.request, self.options) for stage in before)

    def _fault(self, kind: ArtifactKind, message: str) -> PackagingError:
        facts = {"stage": self.stage.value, "kind": kind.value}
        return PackagingError(ErrorCode.INTERNAL_ERROR, message, fields=facts)

    def model(self) -> Artifact:
        """The unquantized GGUF of the model itself, where a job has several.

        Raises:
            PackagingError: ``internal_error`` where none was handed over; ``artifact_lost``.
        """
        for artifact in self.artifacts(ArtifactKind.GGUF):
            if artifact.part is ModelPart.MODEL and artifact.shard_of is None:
                return artifact
        raise self._fault(ArtifactKind.GGUF, f"{self.stage.value} was handed no unquantized model")

    def matrix(self) -> Artifact | None:
        """The importance matrix; ``None`` where the job has none.

        Raises:
            PackagingError: as :meth:`artifacts`.
        """
        return next(iter(self.artifacts(ArtifactKind.IMATRIX)), None)

    def setting(self, unit: str = "bytes") -> WorkSetting:
        """On what terms the stage's work is done; the job is told of progress in ``unit``."""

        def tell(progress: WorkProgress) -> None:
            self.report.progress(progress.done, progress.total, unit, progress.detail)

        return WorkSetting(
            roots=self.settings.allowed_roots,
            scratch_dir=self.scratch,
            llama_cpp_dir=self.settings.llama_cpp_dir,
            threads=self.settings.threads,
            report=tell,
            should_stop=self.report.should_stop,
        )

    def stop_point(self) -> None:
        """Leave at a safe point when asked to.

        Raises:
            StopRequested: the worker drains.
        """
        if self.report.should_stop():
            raise StopRequested
