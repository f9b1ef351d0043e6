"""Names of the files a job makes: one row for each output. Pure; the one place that knows the naming rules.

Prepare checks that the names are free, stages write under them, the console shows them before a job exists, and the
reference pages' table is made of the rows. Names come from what the request says, so that they can be told without
opening anything; only where a base model has moved is it the place where it was found that gives the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from api_client.contract.artifacts import ArtifactKind
from api_client.contract.fit import AnyQuantType, FitType, fits_of
from api_client.contract.locations import CHECKPOINT_WORDS, is_remote
from api_client.contract.quality import FILE_NAME as QUALITY_FILE
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions, needs_imatrix_stage, wants_evaluation, wants_fit
from api_client.runs.checkpoint_names import is_checkpoint_name
from api_client.runs.files import ADAPTER_SUBDIRECTORIES
from api_client.runs.kinds import ADAPTER_CONFIG, ADAPTER_WEIGHTS

MERGED_NAME = "merged_model"
_NAMELESS = "model"


@dataclass(frozen=True)
class OutputSpec:
    """One row: an output that some jobs have.

    Attributes:
        kind: What the file is.
        recipe: Its name; ``{model}``, ``{adapter}`` and ``{quant}`` are filled in. One that ends in ``/`` is a
            directory, whose files the row does not name.
        made: Whether a job makes it and publishes it.
        when_en: When that is, for the reference pages.
        when_zh: The same in Chinese.
    """

    kind: ArtifactKind
    recipe: str
    made: Callable[[PackagingRequest, ResolvedOptions], bool]
    when_en: str
    when_zh: str

    @property
    def is_directory(self) -> bool:
        """Whether the name is that of a directory."""
        return self.recipe.endswith("/")


UNQUANTIZED = OutputSpec(
    ArtifactKind.GGUF,
    "{model}.gguf",
    lambda request, options: options.export_gguf and (request.keep_unquantized or not options.quantize),
    "`export_gguf` is on, unless quantized files are made and `keep_unquantized` is off",
    "开启 `export_gguf`；量化且关闭 `keep_unquantized` 时不保留",
)
QUANTIZED = OutputSpec(
    ArtifactKind.QUANTIZED,
    "{model}-{quant}.gguf",
    lambda _, options: options.quantize,
    "`quantize` is on; one for each quant type",
    "开启 `quantize`；每种量化类型一个",
)
RECIPE = OutputSpec(
    ArtifactKind.RECIPE,
    "{model}-{quant}.recipe.txt",
    lambda _, options: bool(fits_of(options.quant_types)),
    "a quant type is a fit; one for each",
    "量化类型中有 fit；每个 fit 一个",
)
PROJECTOR = OutputSpec(
    ArtifactKind.GGUF,
    "mmproj-{model}.gguf",
    lambda request, options: options.export_gguf and request.projector != "off",
    "`export_gguf` is on and the model has a projector, unless `projector` is `off`",
    "开启 `export_gguf` 且模型带有投影模块；`projector` 为 `off` 时不生成",
)
ADAPTER = OutputSpec(
    ArtifactKind.LORA,
    "{adapter}-lora.gguf",
    lambda _, options: options.export_lora,
    "`export_lora` is on",
    "开启 `export_lora`",
)
MATRIX = OutputSpec(
    ArtifactKind.IMATRIX,
    "{model}.imatrix.gguf",
    lambda request, options: needs_imatrix_stage(request, options) and request.imatrix.mode != "file",
    "an importance matrix is computed",
    "计算了重要性矩阵",
)
SENSITIVITY = OutputSpec(
    ArtifactKind.SENSITIVITY,
    "{model}.sensitivity.gguf",
    lambda request, options: wants_fit(request, options) and request.fit.sensitivity is None,
    "a quant type is a fit and no sensitivity file is given",
    "量化类型中有 fit，且未给出敏感度文件",
)
MERGED_DIRECTORY = OutputSpec(
    ArtifactKind.MERGED_MODEL,
    "{model}-hf/",
    lambda request, _: request.save_merged,
    "`save_merged` is on",
    "开启 `save_merged`",
)
QUALITY = OutputSpec(
    ArtifactKind.QUALITY,
    QUALITY_FILE,
    wants_evaluation,
    "`evaluation.level` is not `off`",
    "`evaluation.level` 不为 `off`",
)
CARD = OutputSpec(
    ArtifactKind.COMPANION,
    "README.md",
    lambda request, _: request.companions,
    "`companions` is on",
    "开启 `companions`",
)
MODELFILE = OutputSpec(
    ArtifactKind.COMPANION,
    "Modelfile",
    lambda request, options: request.companions and options.export_gguf,
    "`companions` and `export_gguf` are on",
    "开启 `companions` 与 `export_gguf`",
)
CHECKSUMS = OutputSpec(ArtifactKind.CHECKSUMS, "SHA256SUMS", lambda *_: True, "always", "总是")
MANIFEST = OutputSpec(ArtifactKind.MANIFEST, "manifest.json", lambda *_: True, "always", "总是")

OUTPUTS = (
    UNQUANTIZED,
    QUANTIZED,
    RECIPE,
    PROJECTOR,
    ADAPTER,
    MATRIX,
    SENSITIVITY,
    MERGED_DIRECTORY,
    QUALITY,
    CARD,
    MODELFILE,
    CHECKSUMS,
    MANIFEST,
)
"""Every row, in the order in which files are listed."""
RECORDS = frozenset({CHECKSUMS.kind, MANIFEST.kind})
"""Kinds of what several jobs of one directory share; who may replace them is a question of its own."""


@dataclass(frozen=True)
class PlannedOutput:
    """A file, or a directory of files, that the job will publish."""

    name: str
    spec: OutputSpec
    quant_type: AnyQuantType | None = None

    @property
    def kind(self) -> ArtifactKind:
        """What it is."""
        return self.spec.kind


@dataclass(frozen=True)
class OutputNames:
    """How one job calls its files.

    Attributes:
        model: Stem of the model's files: the requested name, else ``merged_model``, else the base model's own name.
        adapter: Stem of the exported adapter: the requested name, else the checkpoint's.
    """

    model: str
    adapter: str

    @classmethod
    def of(
        cls, request: PackagingRequest, options: ResolvedOptions, base_name: str, checkpoint_name: str | None
    ) -> OutputNames:
        """Names for a request, given what its inputs are called."""
        chosen = request.model_name.removesuffix(".gguf") if request.model_name is not None else None
        return cls(
            model=chosen or (MERGED_NAME if options.merge_lora else base_name),
            adapter=chosen or checkpoint_name or "adapter",
        )

    def name(self, spec: OutputSpec, quant: AnyQuantType | None = None) -> str:
        """Name of one output; a directory's without the slash at its end."""
        label = quant.label if isinstance(quant, FitType) else quant or ""
        return spec.recipe.removesuffix("/").format(model=self.model, adapter=self.adapter, quant=label)


@dataclass(frozen=True)
class InputNames:
    """What a job's inputs are called, and whether the base model has a projector for pictures or sound."""

    base: str
    checkpoint: str | None
    has_projector: bool = False

    @classmethod
    def of(cls, request: PackagingRequest, options: ResolvedOptions, chosen: str | None = None) -> InputNames:
        """Names by what the request says.

        Args:
            request: With the training task's paths filled in.
            options: Decides whether a checkpoint is an adapter or stands in place of the base model.
            chosen: Name of the checkpoint that a word such as ``latest`` means, where it is known.

        Whether there is a projector is known here only where the request names its type.
        """
        location = checkpoint_location(request, chosen)
        if location is not None and not (options.merge_lora or options.export_lora):
            return cls(weights_name(location), checkpoint_name(location), request.names_projector)
        base = location_name(request.base_model or "")
        checkpoint = checkpoint_name(location) if location is not None else None
        return cls(base, checkpoint, request.names_projector)


def planned_outputs(
    request: PackagingRequest, options: ResolvedOptions, inputs: InputNames
) -> tuple[PlannedOutput, ...]:
    """Everything the job publishes, in the order of the rows. Files above a size limit come as shards instead."""
    return tuple(_planned(request, options, inputs))


def _planned(request: PackagingRequest, options: ResolvedOptions, inputs: InputNames) -> Iterator[PlannedOutput]:
    names = OutputNames.of(request, options, inputs.base, inputs.checkpoint)
    for spec in OUTPUTS:
        if not spec.made(request, options) or (spec is PROJECTOR and not inputs.has_projector):
            continue
        if spec is QUANTIZED:
            yield from (PlannedOutput(names.name(spec, quant), spec, quant) for quant in options.quant_types)
        elif spec is RECIPE:
            fits = fits_of(options.quant_types)
            yield from (PlannedOutput(names.name(spec, quant), spec, quant) for quant in fits)
        else:
            yield PlannedOutput(names.name(spec), spec)


def location_name(location: str) -> str:
    """Last part of a path or URL, as a file name: ``hf://owner/name@revision`` gives ``name``."""
    name = PurePosixPath(location.split("://", 1)[-1]).name
    return name.split("@", 1)[0] or _NAMELESS


def checkpoint_location(request: PackagingRequest, chosen: str | None = None) -> str | None:
    """Path or URL of the checkpoint that a request means; ``chosen`` stands in for ``latest`` and ``best``."""
    reference = request.checkpoint
    if reference is None:
        return None
    run, slash, name = reference.rstrip("/").rpartition("/")
    if not slash:
        run = (request.task.output_dir if request.task else request.output_dir) or ""
    if name in CHECKPOINT_WORDS and not reference.startswith("hf://"):
        name = chosen or name
    return f"{run.rstrip('/')}/{name}" if run or slash else name


def named_run(request: PackagingRequest) -> str:
    """What people call a request's input: run and checkpoint, as ``42/checkpoint-900``, else the model's name."""
    location = checkpoint_location(request)
    if location is None:
        return location_name(request.base_model or "")
    return "/".join(_checkpoint_parts(location)[-2:])


def checkpoint_name(location: str) -> str:
    """Name of a checkpoint, e.g. ``checkpoint-900``, also by the adapter's file or directory inside it."""
    return _checkpoint_parts(location)[-1]


def weights_name(location: str) -> str:
    """Name of full weights that stand in for a base model; a step of a run has the run's name before its own."""
    *above, name = _checkpoint_parts(location)
    return f"{above[-1]}-{name}" if is_checkpoint_name(name) and above else name


def _checkpoint_parts(location: str) -> tuple[str, ...]:
    bare = location.partition("@")[0] if location.startswith("hf://") else location
    parts = [part for part in PurePosixPath(bare.split("://", 1)[-1]).parts if part != "/"] or [_NAMELESS]
    if len(parts) > 1 and not is_remote(location) and parts[-1] in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        parts = parts[:-1]
    if len(parts) > 1 and parts[-1] in ADAPTER_SUBDIRECTORIES and is_checkpoint_name(parts[-2]):
        parts = parts[:-1]
    return tuple(parts)


def name_aside(spec: OutputSpec, job_id: str) -> str:
    """Name under which an earlier job's manifest or report is kept once a job of the same directory takes the name."""
    stem, _, suffix = spec.recipe.rpartition(".")
    return f"{stem}-{job_id}.{suffix}"
