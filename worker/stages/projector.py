"""The projector of a vision or audio model, as a job makes it: whether there is one, and its plan.

Decided once, in ``prepare``, which hands it over. Asked for by its type, it is made or the job is refused; by itself it
is made where the model has one, and why not is said.
"""

from __future__ import annotations

from pathlib import Path

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.request import PackagingRequest
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import plan_conversion
from worker.models.convert.plan import ConversionPlan
from worker.models.convert.projector import PREPARATION, no_projector, says_how_to_prepare, senses_of
from worker.stages.context import StageContext
from worker.stages.inputs import JobInputs, describe_inputs

_UNSOUND = frozenset(
    {
        ErrorCode.BASE_MODEL_INVALID,
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        ErrorCode.TOKENIZER_NOT_FOUND,
        ErrorCode.TOKENIZER_UNSUPPORTED,
    }
)
"""What planning says of a directory that holds no whole projector; without it the text model can be packaged."""


def plan_projector(context: StageContext, inputs: JobInputs) -> ConversionPlan | None:
    """Plan the projector's file from headers; ``None`` where the job makes none.

    Raises:
        PackagingError: ``projector_invalid`` where it is asked for and cannot be made, and where the weights of an
            encoder that ``config.json`` describes are not all there. A directory that does not say how pictures are
            prepared, as one that training saved without its processor, has none but for that.
    """
    request, converter = context.request, context.settings.llama_cpp_dir
    if request.projector == "off" or not context.options.export_gguf:
        return None
    senses = senses_of(inputs.base.config, converter)
    if not senses.has_projector:
        error = no_projector(senses, inputs.base.config, converter)
        if request.names_projector:
            raise error
        if senses.announced:
            context.report.log(f"Only the text model is packaged: {error.message}", level="warning")
        return None
    try:
        _, plan = plan_conversion(
            inputs.base,
            tokenizer=inputs.tokenizer,
            gguf_dtype=projector_dtype(request),
            naming=Naming(describe_inputs(context, inputs), part=ModelPart.PROJECTOR),
            setting=context.setting(),
        )
    except PackagingError as error:
        if error.code not in _UNSOUND:
            raise
        if not request.names_projector and not says_how_to_prepare(_places(inputs)):
            fact = f"the directory has neither {' nor '.join(PREPARATION)}, which a projector is made by"
            context.report.log(f"Only the text model is packaged: {fact} ({error.message})", level="warning")
            return None
        raise PackagingError(ErrorCode.PROJECTOR_INVALID, error.message, fields=dict(error.fields)) from error
    if plan.tensors:
        return plan
    fact = f"config.json describes {', '.join(senses.announced)}, and the weights hold nothing of it"
    if request.names_projector:
        raise PackagingError(ErrorCode.PROJECTOR_INVALID, fact, fields={"encoders": list(senses.announced)})
    context.report.log(f"Only the text model is packaged: {fact}", level="warning")
    return None


def _places(inputs: JobInputs) -> list[Path]:
    """Where the preparation of pictures and sound may be said."""
    places = (inputs.checkpoint, inputs.tokenizer.directory, inputs.base.directory)
    return [place for place in places if place is not None]


def projector_dtype(request: PackagingRequest) -> str:
    """Its type: the one asked for, else that of the unquantized text model."""
    return request.projector if request.names_projector else request.gguf_dtype
