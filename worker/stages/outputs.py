"""Names of the files a job makes. Pure; the one place that knows the naming rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from api_client.job import ArtifactKind
from api_client.quant_types import QuantType
from api_client.request import PackagingRequest
from api_client.rules import ResolvedOptions

MERGED_NAME = "merged_model"
MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
CARD = "README.md"
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class PlannedOutput:
    """A file that the job will publish."""

    name: str
    kind: ArtifactKind
    quant_type: QuantType | None = None


def model_stem(request: PackagingRequest, options: ResolvedOptions, base_name: str) -> str:
    """Stem of the GGUF files: the requested name, else ``merged_model``, else the base model's own name."""
    if request.model_name is not None:
        return request.model_name.removesuffix(".gguf")
    return MERGED_NAME if options.merge_lora else base_name


def unquantized_name(stem: str) -> str:
    """File name of the unquantized GGUF."""
    return f"{stem}.gguf"


def quantized_name(stem: str, quant: QuantType) -> str:
    """File name of one quantized GGUF."""
    return f"{stem}-{quant.value}.gguf"


def merged_directory(stem: str) -> str:
    """Directory of the merged Hugging Face checkpoint, beside the GGUF files."""
    return f"{stem}-hf"


def lora_name(checkpoint_name: str) -> str:
    """File name of the exported adapter."""
    return f"{checkpoint_name}-lora.gguf"


def location_name(location: str) -> str:
    """Last part of a path or URL, as a file name: ``hf://owner/name@revision`` gives ``name``."""
    name = PurePosixPath(location.split("://", 1)[-1]).name
    return name.split("@", 1)[0] or "model"


def planned_outputs(
    request: PackagingRequest, options: ResolvedOptions, base_name: str, checkpoint_name: str | None
) -> tuple[PlannedOutput, ...]:
    """Every model file the job publishes, in the order in which they are made."""
    stem = model_stem(request, options, base_name)
    outputs = []
    if options.export_gguf and (request.keep_unquantized or not options.quantize):
        outputs.append(PlannedOutput(unquantized_name(stem), ArtifactKind.GGUF))
    outputs += [
        PlannedOutput(quantized_name(stem, quant), ArtifactKind.QUANTIZED, quant) for quant in options.quant_types
    ]
    if options.export_lora:
        outputs.append(PlannedOutput(lora_name(request.model_name or checkpoint_name or "adapter"), ArtifactKind.LORA))
    if request.companions:
        outputs.append(PlannedOutput(CARD, ArtifactKind.COMPANION))
        outputs += [PlannedOutput(MODELFILE, ArtifactKind.COMPANION)] if options.export_gguf else []
    return tuple(outputs)


def older_manifest(job_id: str) -> str:
    """Name under which the manifest of an earlier job is kept once another job publishes into the same directory."""
    return f"manifest-{job_id}.json"


def imatrix_name(stem: str) -> str:
    """File name of a computed importance matrix."""
    return f"{stem}.imatrix.gguf"
