"""What there is to choose from. Questions about files go to a worker, for the console may not see the disk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api_client.console.api.documents import (
    NO_ANSWER,
    QuantTypeDocument,
    QuantTypeList,
    RecommendationDocument,
    TemplateList,
)
from api_client.console.api.parameters import Reader, Submitter
from api_client.console.context import AskWorkers, Client
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recommend import DEFAULT_CONTEXT, TARGETS
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.ledger.questions import RunAnswer, SpaceAnswer

router = APIRouter(tags=["choices"])

Place = Annotated[str, Query(min_length=1, max_length=4096)]


@router.get("/templates")
def list_templates(client: Client, _: Reader) -> TemplateList:
    """List the templates: the built-in ones, then this site's own."""
    known = client.templates()
    own = (template for name, template in known.items() if name not in BUILTIN_TEMPLATES)
    return TemplateList(templates=(*BUILTIN_TEMPLATES.values(), *own))


@router.get("/quant-types")
def list_quant_types(_: Reader) -> QuantTypeList:
    """List the quant types. Bits per weight are those of an 8B Llama."""
    rows = (QuantTypeDocument(name=quant_type, **QUANT_TYPES[quant_type]._asdict()) for quant_type in QuantType)
    return QuantTypeList(quant_types=tuple(rows))


@router.get("/checkpoints", responses=NO_ANSWER)
def list_checkpoints(run: Place, ask: AskWorkers, _: Submitter) -> RunAnswer:
    """List the checkpoints of a training run: an absolute path as the workers see it, or `s3://`."""
    return ask.checkpoints(run)


@router.get("/recommend", responses=NO_ANSWER)
def recommend_types(
    model: Place,
    ask: AskWorkers,
    _: Submitter,
    target: Annotated[
        str, Query(description=f"{', '.join(f'`{name}`' for name in TARGETS)}, or a size such as `6GB`.", max_length=40)
    ] = "gpu-8g",
    context: Annotated[int, Query(description="Context length in tokens.", ge=1, le=100_000_000)] = DEFAULT_CONTEXT,
) -> RecommendationDocument:
    """Judge every quant type for a model on the workers' disks or in object storage, and a place to run it."""
    measured, recommendation = ask.recommend(model, target, context)
    return RecommendationDocument(
        **recommendation.model_dump(),
        host=measured.host,
        model=measured.model,
        architecture=measured.shape.architecture,
        trained_context=measured.shape.context_length,
    )


@router.get("/space", responses=NO_ANSWER)
def get_space(path: Place, ask: AskWorkers, _: Submitter) -> SpaceAnswer:
    """Room on the disk of an output directory, which need not exist yet."""
    return ask.space(path)
