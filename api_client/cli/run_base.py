"""The base model that a run's own files name: for a command line that names none, or one that has moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from api_client.cli.output import Output
from api_client.contract.errors import PackagingError
from api_client.contract.locations import CHECKPOINT_WORDS, is_remote
from api_client.contract.request import PackagingRequest
from api_client.runs.base_models import NamedBase, first_usable, likely_base, named_base_models
from api_client.runs.checkpoints import resolve_checkpoint
from api_client.runs.files import LocalRunFiles


def fill_base_model(request: PackagingRequest, output: Output) -> PackagingRequest:
    """Take the base model from the checkpoint's adapter or its run, where nothing names one and this machine sees them.

    Args:
        request: The request; the same is returned where there is nothing to fill in.
        output: Told which base model is taken, and which file names it.
    """
    if request.base_model is not None or request.task is not None:
        return request
    base = first_usable(named_by_run(request))
    if base is None:
        return request
    output.say(output.text("base_taken", base=base.location, file=base.file))
    return PackagingRequest(**request.model_dump(exclude_unset=True) | {"base_model": base.location})


def named_by_run(filled: PackagingRequest) -> Iterator[NamedBase]:
    """Every base model that the checkpoint's adapter or its run names; none where they are not visible here."""
    checkpoint = _local_checkpoint(filled)
    if checkpoint is not None:
        yield from named_base_models(LocalRunFiles(checkpoint.parent), checkpoint.name)


def suggested_base(filled: PackagingRequest) -> str | None:
    """The directory that was perhaps meant by a base model's path that leads nowhere here."""
    checkpoint = _local_checkpoint(filled)
    run = LocalRunFiles(checkpoint.parent) if checkpoint else None
    return likely_base(str(filled.base_model), run, checkpoint.name if checkpoint else "", lambda _: True)


def _local_checkpoint(filled: PackagingRequest) -> Path | None:
    reference, run_dir = checkpoint_from_here(filled)
    if reference is None or is_remote(reference):
        return None
    try:
        return resolve_checkpoint(reference, run_dir)
    except PackagingError:  # told when the checkpoint is checked
        return None


def checkpoint_from_here(filled: PackagingRequest) -> tuple[str | None, str | None]:
    """The checkpoint, a directory in the working directory written out, and the run that words and names belong to."""
    reference = filled.checkpoint
    run_dir = filled.task.output_dir if filled.task else filled.output_dir
    if reference is not None and filled.task is None and _is_directory_here(reference, run_dir):
        reference = str(Path(reference).absolute())
    return reference, run_dir


def _is_directory_here(reference: str, run_dir: str | None) -> bool:
    """Whether a bare name is a directory in the working directory, as a shell reads it, and none of the run's."""
    if "/" in reference or reference in CHECKPOINT_WORDS or not Path(reference).is_dir():
        return False
    return run_dir is None or is_remote(run_dir) or not Path(run_dir, reference).is_dir()
