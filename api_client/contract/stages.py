"""The stages: one row each. Whatever depends on which stages there are is made of these rows.

A row says when a stage is planned, what it is handed and what it makes, under which kind it writes its log, what it is
called, and whether its modules are loaded beforehand. Of them are made the plan, the check of earlier stages' files and
what a stage is handed, names in console and documentation, metrics and the registry of functions: the function of a
stage is ``run`` in ``worker/stages/NAME.py``. So a new stage is a row, a log kind and a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from api_client.contract.artifacts import Artifact, ArtifactKind
from api_client.contract.enum_rows import named_member
from api_client.contract.event_kinds import EventKind
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import (
    ResolvedOptions,
    needs_imatrix_stage,
    wants_evaluation,
    wants_fit,
    writes_unquantized,
)
from api_client.words.language import Language

_K = ArtifactKind
_NONE: frozenset[ArtifactKind] = frozenset()
_GGUFS = frozenset(kind for kind in ArtifactKind if kind.is_gguf)
_MODELS = frozenset(kind for kind in ArtifactKind if kind.is_model)
_PUBLISHED = _GGUFS | {_K.MERGED_MODEL, _K.IMATRIX, _K.SENSITIVITY, _K.QUALITY, _K.RECIPE}


@dataclass(frozen=True)
class StageSpec:
    """What is known of a stage before it runs.

    Attributes:
        log_kind: Kind of its log entries.
        title_en: Its name for people.
        title_zh: The same in Chinese.
        planned: Whether a job has it.
        reads: Kinds of files that it is handed. A file that no stage still to run reads is not missed.
        makes: Kinds of which it makes a file in every job that has it.
        may_make: Kinds of which it makes files in some.
        decided: Those of ``may_make`` of which it makes a file in a job, where the request decides that.
        reads_given: Whether it is also handed files that the user gave and no stage made.
        preloaded: Whether its modules are loaded once, for all jobs; not where they are many and few jobs need them.
    """

    log_kind: EventKind
    title_en: str
    title_zh: str
    planned: Callable[[PackagingRequest, ResolvedOptions], bool]
    reads: frozenset[ArtifactKind] = _NONE
    makes: frozenset[ArtifactKind] = _NONE
    may_make: frozenset[ArtifactKind] = _NONE
    decided: Callable[[PackagingRequest, ResolvedOptions], frozenset[ArtifactKind]] = lambda *_: _NONE
    reads_given: bool = True
    preloaded: bool = True

    def title(self, language: Language) -> str:
        """Its name for people."""
        return language.choose(self.title_en, self.title_zh)

    def due(self, request: PackagingRequest, options: ResolvedOptions) -> frozenset[ArtifactKind]:
        """Kinds of which it makes a file in a job that has it."""
        return self.makes | self.decided(request, options)

    def takes(self, artifact: Artifact) -> bool:
        """Whether the stage is handed an artifact."""
        return artifact.kind in self.reads and (self.reads_given or artifact.is_computed)


class StageName(StrEnum):
    """The stages, in the order in which a plan has them."""

    spec: StageSpec

    def __new__(cls, name: str, spec: StageSpec | None = None) -> Self:
        """A row; ``StageName("merge")``, which looks one up, passes its name alone."""
        assert spec is not None, f"the stage {name} has no row"
        member = named_member(cls, name)
        member.spec = spec
        return member

    PREPARE = (
        "prepare",
        StageSpec(EventKind.PREPARE, "Prepare", "准备", lambda *_: True),
    )
    MERGE = (
        "merge",
        StageSpec(
            EventKind.MERGE_LORA,
            "Merge LoRA",
            "合并 LoRA",
            lambda _, options: options.merge_lora,
            makes=frozenset({_K.OVERLAY}),
            may_make=frozenset({_K.MERGED_MODEL}),
        ),
    )
    CONVERT = (
        "convert",
        StageSpec(
            EventKind.GGUF_CONVERSION,
            "Convert to GGUF",
            "转换 GGUF",
            lambda _, options: options.export_gguf,
            reads=frozenset({_K.OVERLAY}),
            may_make=frozenset({_K.GGUF, _K.LAYOUT}),
            decided=lambda request, options: frozenset(
                {_K.GGUF if writes_unquantized(request, options) else _K.LAYOUT}
            ),
        ),
    )
    IMATRIX = (
        "imatrix",
        StageSpec(
            EventKind.IMPORTANCE_MATRIX,
            "Importance matrix",
            "重要性矩阵",
            needs_imatrix_stage,
            reads=frozenset({_K.GGUF, _K.LAYOUT, _K.OVERLAY}),
            makes=frozenset({_K.IMATRIX}),
            preloaded=False,
        ),
    )
    SENSITIVITY = (
        "sensitivity",
        StageSpec(
            EventKind.SENSITIVITY,
            "Sensitivity",
            "敏感度",
            wants_fit,
            reads=frozenset({_K.OVERLAY, _K.IMATRIX}),
            makes=frozenset({_K.SENSITIVITY}),
            preloaded=False,
        ),
    )
    QUANTIZE = (
        "quantize",
        StageSpec(
            EventKind.QUANTIZATION,
            "Quantize",
            "量化",
            lambda _, options: options.quantize,
            reads=frozenset({_K.GGUF, _K.LAYOUT, _K.IMATRIX, _K.SENSITIVITY, _K.OVERLAY}),
            makes=frozenset({_K.QUANTIZED}),
            may_make=frozenset({_K.RECIPE}),
        ),
    )
    EXPORT_LORA = (
        "export_lora",
        StageSpec(
            EventKind.LORA_EXPORT,
            "Export LoRA",
            "导出 LoRA",
            lambda _, options: options.export_lora,
            makes=frozenset({_K.LORA}),
        ),
    )
    VERIFY = (
        "verify",
        StageSpec(EventKind.VERIFY, "Verify", "校验", lambda *_: True, reads=_GGUFS | {_K.OVERLAY}, may_make=_MODELS),
    )
    EVALUATE = (
        "evaluate",
        StageSpec(
            EventKind.EVALUATION,
            "Evaluate",
            "评估",
            wants_evaluation,
            reads=_MODELS | {_K.LAYOUT, _K.OVERLAY},
            makes=frozenset({_K.QUALITY}),
        ),
    )
    PUBLISH = (
        "publish",
        StageSpec(
            EventKind.PUBLISH,
            "Publish",
            "发布",
            lambda *_: True,
            reads=_PUBLISHED,
            may_make=_PUBLISHED | {_K.COMPANION, _K.MANIFEST, _K.CHECKSUMS},
            reads_given=False,
        ),
    )


def needed_by(stages: Iterable[StageName], artifact: Artifact) -> bool:
    """Whether any of these stages is handed an artifact."""
    return any(stage.spec.takes(artifact) for stage in stages)
