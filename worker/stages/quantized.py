"""What is kept and said of a quantized file, by whichever stage made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from api_client.contract.fit import AnyQuantType
from api_client.contract.job import Artifact, ArtifactKind, ModelPart
from worker.models.gguf.types import GGMLType
from worker.models.quantize.lattice import exactness_facts
from worker.models.quantize.result import QuantizeResult, TypeOutcome
from worker.stages.context import StageContext

LATTICE_FACT = "lattice"
"""Fact of a quantized file of a job that hits lattices."""
_MOST_NAMED = 3


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
            **({} if outcome.exactness is None else {LATTICE_FACT: exactness_facts(outcome.exactness)}),
            **(more or {}),
        },
    )


def tell_lattices(context: StageContext, result: QuantizeResult) -> None:
    """Say which weights lie on a lattice and are not held exactly: unasked for, or of a type that cannot."""
    lattices = result.lattices
    if context.request.lattice != "off":
        for outcome in result.outcomes.values():
            _tell_left(context, outcome, [name for name, lattice in lattices.items() if lattice is GGMLType.Q4_0])
        return
    counts, total = Counter(lattices.values()), len(lattices)
    if counts[GGMLType.Q4_0]:
        context.report.log(
            f"{counts[GGMLType.Q4_0]} of {total} quantized tensors lie on the lattice of Q4_0, as after "
            "quantization-aware training: the quant type Q4_0 with `lattice: auto` holds them exactly"
        )
    if counts[GGMLType.MXFP4]:
        context.report.log(
            f"{counts[GGMLType.MXFP4]} of {total} quantized tensors lie on the lattice of MXFP4: the quant type "
            "MXFP4_MOE holds those of experts exactly"
        )


def _tell_left(context: StageContext, outcome: TypeOutcome, on_lattice: Sequence[str]) -> None:
    left = [name for name in on_lattice if name not in (outcome.exactness or {})]
    if left and outcome.error is None:
        context.report.log(
            f"{outcome.path.name}: {len(left)} tensors that lie on a lattice are of types that cannot hold it "
            f"({', '.join(left[:_MOST_NAMED])}); a recipe can name Q4_0 for them",
            level="warning",
        )


def _tell_exactness(context: StageContext, artifact: Artifact) -> None:
    facts = artifact.facts.get(LATTICE_FACT)
    if facts is None:
        return
    if not facts["tensors"]:
        context.report.log(
            f"{artifact.name}: no tensor is made of a type that can hold a lattice exactly",
            level="warning",
            quant_type=artifact.quant_type,
        )
        return
    context.report.log(
        f"{artifact.name}: {facts['exact']:,} of {facts['weights']:,} weights in {facts['tensors']} tensors are those "
        f"of the checkpoint ({facts['stock']:,} as llama-quantize makes them)",
        quant_type=artifact.quant_type,
        lattice=facts,
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
    _tell_exactness(context, artifact)
