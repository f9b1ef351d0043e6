"""Answers to questions about files, in a process of their own: it may load torch, hang on a disk, and be killed for it.

Policy is the jobs' own: local paths below the allowed roots, buckets that jobs may read.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.recommend import shape_of
from api_client.contract.request import is_remote
from api_client.disk import disk_room, on_one_disk
from api_client.ledger.asking import QuestionKind
from api_client.ledger.questions import DiskRoom, RunAnswer, RunsAnswer, SizesAnswer, SpaceAnswer
from api_client.runs.base_models import named_base_models
from api_client.runs.checkpoints import CheckpointList, list_checkpoints
from api_client.runs.files import ADAPTER_SUBDIRECTORIES, LocalRunFiles, RunFiles
from api_client.runs.kinds import ADAPTER_CONFIG, CheckpointKind
from api_client.runs.listing import list_runs
from config.roots import NOWHERE_ELSE
from config.settings import StageSettings
from worker.service.supervisor.channel import Channel
from worker.service.supervisor.child import as_packaging_error, stand_alone
from worker.storage.outline import outline
from worker.storage.runs import open_run

_NICE = 5
"""A stage that runs beside it comes first."""


@dataclass(frozen=True)
class AnswerStart:
    """Everything the process is given."""

    kind: QuestionKind
    parameters: Mapping[str, str]
    host: str
    settings: StageSettings
    scratch_dir: Path | None = None
    """Where jobs work; beside their outputs where None."""


def main(connection: socket.socket, output: socket.socket, start: AnswerStart) -> None:
    """Entry of the process."""
    stand_alone(output)
    os.nice(_NICE)
    channel = Channel(connection)
    try:
        channel.send("result", result=answer(start).model_dump(mode="json"))
    except BaseException as error:  # Whatever it is, the asker must hear of it.
        channel.send("error", error=as_packaging_error(error).failure.to_record())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def answer(start: AnswerStart) -> BaseModel:
    """Find the answer.

    Raises:
        PackagingError: ``path_not_allowed``, ``base_model_not_found``, ``request_invalid``, and what reading raises.
    """
    functions: dict[QuestionKind, tuple[str, Callable[[str, AnswerStart], BaseModel]]] = {
        QuestionKind.CHECKPOINTS: ("run", _checkpoints),
        QuestionKind.SIZES: ("model", _sizes),
        QuestionKind.RUNS: ("search", _runs),
        QuestionKind.SPACE: ("path", _space),
    }
    name, function = functions[start.kind]
    if set(start.parameters) != {name}:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"a question about {start.kind.value} has the parameter {name}",
            fields={"field": name},
        )
    return function(start.parameters[name], start)


def _checkpoints(run: str, start: AnswerStart) -> RunAnswer:
    files = _run_files(run, start.settings)
    listing = list_checkpoints(files)
    return RunAnswer(host=start.host, listing=listing, base_model=_base_of(files, listing))


def _sizes(model: str, start: AnswerStart) -> SizesAnswer:
    from worker.models.sizes import machine_memory_bytes, predict_file_sizes, predict_projector_bytes

    with ExitStack() as stack:
        if model.startswith("s3://"):
            roots = NOWHERE_ELSE
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="trainpack-"))
            path = outline(open_run(model, start.settings), Path(scratch))
        elif is_remote(model):
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"{model}: sizes are predicted for models on the workers' disks or in object storage",
                remedy="Give a path or s3://, or go on without sizes: prepare checks the space before anything is "
                "made.",
                fields={"field": "model"},
            )
        else:
            roots = start.settings.allowed_roots
            path = _model_path(roots.resolve(model), start.settings)
            model = str(path)
        metadata, sizes = predict_file_sizes(path, roots)
        projector_bytes = predict_projector_bytes(path, roots)
    return SizesAnswer(
        host=start.host,
        model=model,
        shape=shape_of(metadata),
        sizes=sizes,
        memory_bytes=machine_memory_bytes(),
        projector_bytes=projector_bytes,
    )


def _runs(search: str, start: AnswerStart) -> RunsAnswer:
    roots = [root for root in start.settings.run_roots if start.settings.allowed_roots.allow(root)]
    return RunsAnswer(host=start.host, listing=list_runs(roots, search))


def _space(path: str, start: AnswerStart) -> SpaceAnswer:
    if is_remote(path):
        raise PackagingError(ErrorCode.REQUEST_INVALID, f"{path} is on no disk", fields={"field": "path"})
    real = start.settings.allowed_roots.resolve(path, for_writing=True)
    free, total = disk_room(real)
    return SpaceAnswer(
        host=start.host,
        path=path,
        exists=real.is_dir(),
        free_bytes=free,
        total_bytes=total,
        scratch=_scratch_elsewhere(real, start.scratch_dir),
    )


def _scratch_elsewhere(output: Path, scratch: Path | None) -> DiskRoom | None:
    """Room where jobs work, if that is not the disk of their outputs."""
    if scratch is None or on_one_disk(scratch, output):
        return None
    return DiskRoom(path=str(scratch), free_bytes=disk_room(scratch)[0])


def _run_files(run: str, settings: StageSettings) -> RunFiles:
    if run.startswith("s3://"):
        return open_run(run, settings)
    if is_remote(run):
        raise PackagingError(
            ErrorCode.REQUEST_INVALID, f"{run}: a run is a directory or s3://", fields={"field": "run"}
        )
    return LocalRunFiles(settings.allowed_roots.resolve(run))


def _model_path(path: Path, settings: StageSettings) -> Path:
    """The model itself; for a checkpoint or a run the base model that its adapter names."""
    if path.is_file() or not path.is_dir() or (path / "config.json").exists():
        return path
    run = LocalRunFiles(path.parent if _is_adapter(path) else path)
    named = _adapter_base(run, path.name) if _is_adapter(path) else _base_of(run, list_checkpoints(run))
    if named is None or not Path(named).is_absolute():
        raise PackagingError(
            ErrorCode.BASE_MODEL_NOT_FOUND,
            f"{path} is no base model" + (f"; its adapter names {named}, which is no path" if named else ""),
            remedy="Give the base model's directory.",
            fields={"path": str(path), "named": named},
        )
    return settings.allowed_roots.resolve(named)


def _is_adapter(path: Path) -> bool:
    return any((path / sub / ADAPTER_CONFIG).exists() for sub in ADAPTER_SUBDIRECTORIES)


def _base_of(run: RunFiles, listing: CheckpointList) -> str | None:
    """The base model that the newest usable adapter of a run names."""
    adapters = [checkpoint.name for checkpoint in listing.checkpoints if checkpoint.kind is CheckpointKind.ADAPTER]
    return _adapter_base(run, adapters[-1]) if adapters else None


def _adapter_base(run: RunFiles, checkpoint: str) -> str | None:
    return next((named.location for named in named_base_models(run, checkpoint)), None)
