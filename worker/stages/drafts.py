"""Prove that prediction layers (MTP, NextN) predict: llama.cpp drafts with them, and the model accepts some of it.

A head that was cut too coarsely, or that belongs to another model, loads and is never right: a server then works for
nothing with every token. Tried on text that the job is measured on, else on the shipped one, greedily.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact
from worker.models.gguf.reader import open_gguf
from worker.models.imatrix.calibration import load_calibration
from worker.models.verify.ask import Question
from worker.models.verify.load import drafts_of
from worker.stages.context import StageContext
from worker.stages.facts import without_paths

_TEXTS, _TEXT_CHARACTERS = 4, 80
_TOKENS = 32
_ENOUGH = 60
"""Drafted tokens of which one at least has to be accepted."""


def prove_drafts(context: StageContext, artifact: Artifact) -> dict[str, Any] | None:
    """Measure how many drafted tokens are accepted; ``None`` for a file without prediction layers.

    Returns:
        ``drafted`` and ``accepted``; or ``not_tried``, where llama.cpp does not draft with such layers.

    Raises:
        PackagingError: ``draft_head_invalid`` where none is accepted and the request asked for the layers. Those that a
            job has by itself are warned of.
    """
    if not _predicts(Path(artifact.path)):
        return None
    first, *others = _texts(context)
    question = Question(
        artifact.path,
        prompt=first,
        others=others,
        max_tokens=_TOKENS,
        context_tokens=512,
        threads=context.settings.threads,
    )
    try:
        drafted, accepted = drafts_of(question)
    except PackagingError as error:
        if error.code is not ErrorCode.OUTPUT_DOES_NOT_LOAD:
            raise
        reason = error.fields.get("reason", error.message)
        context.report.log(
            f"{artifact.name}: llama.cpp does not draft with its prediction layers here: {reason}", level="warning"
        )
        return {"not_tried": without_paths(reason)}
    context.report.log(
        f"{artifact.name}: {accepted} of {drafted} tokens drafted by its prediction layers are accepted",
        level="warning" if drafted >= _ENOUGH and not accepted else "info",
        file=artifact.name,
    )
    if drafted >= _ENOUGH and not accepted and context.request.draft_head != "auto":
        raise PackagingError(
            ErrorCode.DRAFT_HEAD_INVALID,
            f"{artifact.name}: none of {drafted} tokens drafted by its prediction layers is accepted",
            remedy="Set draft_head to `drop`, choose a finer quant type, or, with `auto`, take the layers as they are.",
            fields={"field": "draft_head", "file": artifact.name, "drafted": drafted},
        )
    return {"drafted": drafted, "accepted": accepted}


def _predicts(path: Path) -> bool:
    with open_gguf(path) as file:
        architecture = file.metadata["general.architecture"].value
        layers = file.metadata.get(f"{architecture}.nextn_predict_layers")
    return layers is not None and bool(layers.value)


def _texts(context: StageContext) -> list[str]:
    """Beginnings of as many parts of the text, evenly spaced."""
    text = load_calibration(context.prepared.evaluation.text).text
    step = max(1, len(text) // _TEXTS)
    texts = [text[start : start + _TEXT_CHARACTERS] for start in range(0, len(text), step)]
    return texts[:_TEXTS] or [Question.prompt]
