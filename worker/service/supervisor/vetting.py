"""What a worker believes of a job's record. It comes from Redis, to which others write: it is input like any other.

A path is used only where it lies in the job's own scratch or output directory, symlinks followed; a name only where it
is plain. What ``prepare`` found (directories of inputs, stems of file names) must lie where jobs may read. A stage
whose record is not believed counts as not run, and runs again. So whoever writes to Redis can make a job do its work
twice, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from api_client.contract.errors import PackagingError
from api_client.contract.job import Job, StageName, StageState, is_plain_name
from api_client.contract.job_ids import is_job_id
from api_client.contract.request import PackagingRequest, is_remote
from config.roots import Roots
from config.settings import Settings
from worker.stages.prepared import Prepared

_PATH_CHARACTERS = 4096


def noted_scratch(settings: Settings, job_id: str, noted: str) -> Path | None:
    """A directory that this host noted as a job's scratch, where it can be one; ``None`` of any other.

    Args:
        settings: This worker's; the allowed roots bound what lies beside outputs.
        job_id: As noted.
        noted: The path as noted.
    """
    if not is_job_id(job_id) or not _is_whole(noted):
        return None
    path = Path(noted)
    own = [settings.home / "scratch" / job_id]
    own += [settings.scratch_dir / job_id] if settings.scratch_dir is not None else []
    beside = path.name == f".trainpack-{job_id}" and _allowed(path.parent, settings.allowed_roots)
    return path if (path in own or beside) and not path.is_symlink() else None


def usable_paths(job_id: str, request: PackagingRequest, scratch: Path, settings: Settings) -> Callable[[str], bool]:
    """Whether a path that a record names is one of this job's files.

    They lie in its scratch or its output directory; or in a directory that bears the job's name, as scratch on another
    host does, where jobs may read.
    """
    own_names = {job_id, f".trainpack-{job_id}"}
    places = [scratch.resolve()]
    if may_write(request, settings):
        places.append(Path(str(request.output_dir)).resolve())

    def usable(path: str) -> bool:
        if not _is_whole(path):
            return False
        path_given = Path(path)
        if own_names.intersection(path_given.parts[:-1]) and _allowed(path_given, settings.allowed_roots):
            return bool(own_names.intersection(path_given.resolve().parts[:-1]))
        return _allowed(path_given, Roots.only(*places))

    return usable


def may_write(request: PackagingRequest, settings: Settings) -> bool:
    """Whether a worker may write beside the outputs of a job: its directory is a local one under the allowed roots."""
    local = request.output_dir is not None and not is_remote(request.output_dir)
    return (
        local and _is_whole(str(request.output_dir)) and _allowed(Path(str(request.output_dir)), settings.allowed_roots)
    )


def disbelieved(job: Job, settings: Settings) -> tuple[StageName, ...]:
    """Stages that are recorded as done with facts that no stage of this worker can have found."""
    return tuple(
        stage.name
        for stage in job.stages
        if stage.name is StageName.PREPARE
        and stage.state is StageState.SUCCEEDED
        and not prepared_here(stage.facts, settings)
    )


def prepared_here(facts: Mapping[str, Any], settings: Settings) -> bool:
    """Whether the facts of ``prepare`` name nothing but inputs that jobs may read, and plain names."""
    try:
        prepared = Prepared.read(facts)
    except PackagingError:
        return False
    if prepared is None:
        return True
    # Where the adapter says that its base model was is text from a file, which every reader checks.
    inputs = prepared.model_copy(update={"adapter_base": None}).directories.values()
    roots = settings.allowed_roots.also(settings.for_stages().cache_dir)
    stems = [name for name in (prepared.base_name, prepared.checkpoint_name) if name is not None]
    return all(_is_whole(str(path)) and _allowed(path, roots) for path in inputs) and all(map(_is_stem, stems))


def _is_stem(name: str) -> bool:
    return is_plain_name(name) and "/" not in name


def _is_whole(path: str) -> bool:
    """An absolute path as it would be written: nothing to be resolved in it but links."""
    plain = len(path) <= _PATH_CHARACTERS and "\0" not in path and path.startswith("/")
    return plain and ".." not in path.split("/")


def _allowed(path: Path, roots: Roots) -> bool:
    try:
        roots.resolve(path)
    except PackagingError:
        return False
    return True
