"""What is kept and said of a quantized file, by whichever stage made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api_client.contract.fit import AnyQuantType
from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from worker.models.quantize.result import TypeOutcome
from worker.stages.context import StageContext


def quantized_artifact(
    quant: AnyQuantType, outcome: TypeOutcome, part: ModelPart, more: Mapping[str, Any] | None = None
) -> Artifact:
    """The artifact of a type that was made; ``more`` are facts besides its own."""
    return Artifact.of(
        outcome.path,
        ArtifactKind.QUANTIZED,
        sha256=outcome.sha256,
        quant_type=quant.value,
        part=part,
        facts={
            "mixture": dict(outcome.mixture_counts),
            "bits_per_weight": outcome.bits_per_weight,
            "fallback_count": outcome.fallback_count,
            "resumed_tensors": outcome.resumed_tensors,
            **(more or {}),
        },
    )


def tell_made(context: StageContext, artifact: Artifact) -> None:
    """Say in the log what was made."""
    facts = artifact.facts
    note = (
        f", {facts['fallback_count']} tensors fell back to a type that fits their rows"
        if facts["fallback_count"]
        else ""
    )
    context.report.log(
        f"{artifact.name}: {facts['bits_per_weight']:.2f} bits per weight{note}",
        quant_type=artifact.quant_type,
        mixture=facts["mixture"],
    )
