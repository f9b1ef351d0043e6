"""The layout: what convert leaves where nobody wants the unquantized file, the header that it would have.

Later stages read it in the file's place: the matrix is checked by it, and quantize and evaluate open the conversion
again and make each tensor of the base model and the overlay when it is its turn
(:mod:`worker.models.convert.unwritten`). Whether a job has it is decided by the request alone (``writes_unquantized``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_client.contract.artifacts import FILE_SIZE_FACT
from api_client.contract.job import Artifact, ArtifactKind
from api_client.contract.outputs import UNQUANTIZED
from worker.models.convert.pipeline import Conversion, conversion_identity, reopen_conversion
from worker.models.convert.unwritten import UnwrittenFile, open_unwritten
from worker.models.gguf.reader import GGUFFile, open_gguf
from worker.stages.context import StageContext
from worker.stages.inputs import job_overlay, job_source, job_tokenizer
from worker.storage.atomic import atomic_write_bytes

_SUFFIX = ".layout"


def keep_layout(context: StageContext, conversion: Conversion) -> Artifact:
    """Write the header down.

    Raises:
        PackagingError: ``disk_space_insufficient``, ``output_dir_not_writable``.
    """
    path = context.scratch / f"{context.names.name(UNQUANTIZED)}{_SUFFIX}"
    atomic_write_bytes(path, conversion.plan.header)
    return Artifact.of(path, ArtifactKind.LAYOUT, facts={FILE_SIZE_FACT: conversion.plan.size_bytes})


def job_layout(context: StageContext) -> Artifact | None:
    """The layout of the model; ``None`` where the job has its unquantized file.

    Raises:
        PackagingError: as ``StageContext.artifacts``.
    """
    return next(iter(context.artifacts(ArtifactKind.LAYOUT)), None)


@contextmanager
def open_header(context: StageContext) -> Iterator[GGUFFile]:
    """Metadata and tensors of the unquantized model, written or not."""
    layout = job_layout(context)
    if layout is None:
        with open_gguf(Path(context.model().path)) as file:
            yield file
        return
    yield GGUFFile(layout.path, memoryview(_header(layout)), layout.facts[FILE_SIZE_FACT])


def layout_identity(context: StageContext, layout: Artifact) -> str:
    """The same as long as nobody writes to what the file would be made of."""
    return conversion_identity(
        job_source(context),
        _header(layout),
        overlay=job_overlay(context),
        tokenizer=job_tokenizer(context),
        setting=context.setting(),
    )


@contextmanager
def open_layout(context: StageContext, layout: Artifact) -> Iterator[UnwrittenFile]:
    """Open the file that is not there.

    Raises:
        PackagingError: ``base_model_invalid`` where the base model is another one than was converted.
    """
    conversion = reopen_conversion(
        job_source(context),
        _header(layout),
        overlay=job_overlay(context),
        tokenizer=job_tokenizer(context),
        gguf_dtype=context.request.gguf_dtype,
        setting=context.setting(),
    )
    with open_unwritten(layout.name.removesuffix(_SUFFIX), conversion, context.settings.threads) as file:
        yield file


def _header(layout: Artifact) -> bytes:
    return Path(layout.path).read_bytes()
