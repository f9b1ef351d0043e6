"""Which file ``ask`` asks, and which model it was made from: by a file, a package's directory, or a job."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, Job, ModelPart
from api_client.contract.outputs import MANIFEST

_ASKED_FIRST = (ArtifactKind.QUANTIZED, ArtifactKind.GGUF, ArtifactKind.LORA)


@dataclass(frozen=True)
class AskedModel:
    """What is asked.

    Attributes:
        model: The model's file; None where only an adapter was made.
        lora: The adapter's file, to be applied to its base.
        base: Location of the model that it was made from, where that is known.
    """

    model: Path | None
    lora: Path | None = None
    base: str | None = None


def subject_of(text: str) -> AskedModel:
    """What a file, a directory or a job means. Of several files it is the first quantized one.

    Raises:
        PackagingError: ``job_not_found``, ``gguf_invalid`` where there is no file to ask, ``redis_unreachable``.
    """
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        content = _manifest(path)
        kinds = {str(file.get("name")): str(file.get("kind")) for file in content.get("files", ())}
        files = [(path / name, kind) for name, kind in kinds.items()]
        files = files or [(file, _kind_by_name(file)) for file in sorted(path.glob("*.gguf"))]
        return _first(files, _base_in(content), text)
    if path.is_file():
        content = _manifest(path.parent)
        kinds = {str(file.get("name")): str(file.get("kind")) for file in content.get("files", ())}
        return _first([(path, kinds.get(path.name, _kind_by_name(path)))], _base_in(content), text)
    if "/" in text or text.endswith(".gguf"):
        raise PackagingError(
            ErrorCode.GGUF_INVALID,
            f"{path} does not exist",
            remedy="Give a GGUF file, the directory of a package, or a job.",
            fields={"path": str(path)},
        )
    with open_client() as client:
        return subject_of_job(client.get(client.find(text)))


def subject_of_job(job: Job) -> AskedModel:
    """What a job made.

    Raises:
        PackagingError: ``gguf_invalid`` where it made nothing that can be asked, or nothing that is here.
    """
    files = [(Path(output.path), output.kind) for output in job.outputs if _can_be_asked(output)]
    if files and not any(path.is_file() for path, _ in files):
        raise PackagingError(
            ErrorCode.GGUF_INVALID,
            f"the files of job {job.id} are not on this machine",
            remedy=f"Fetch them: trainpack outputs {job.id} --download DIR, then ask a file.",
            fields={"job_id": job.id},
        )
    return _first(files, job.base_used.path if job.base_used else job.request.base_model, job.id)


@contextlib.contextmanager
def base_gguf(subject: AskedModel, given: Path | None) -> Iterator[Path]:
    """A GGUF file of the model that the subject was made from; one made for this goes again at the end.

    Takes the model's size on the disk of temporary files while it lives.

    Raises:
        PackagingError: ``base_model_required``, and what converting raises.
    """
    location = str(given.expanduser().absolute()) if given is not None else subject.base
    if location is None or not Path(location).exists():
        raise PackagingError(
            ErrorCode.BASE_MODEL_REQUIRED,
            f"the base model {location} is not on this machine" if location else "no manifest names the base model",
            remedy="Give its directory or a GGUF file of it: --base-model PATH.",
            fields={"base_model": location},
        )
    if Path(location).is_file():
        yield Path(location)
        return
    from config.roots import Roots
    from worker.models.convert.pipeline import convert
    from worker.setting import WorkSetting

    with tempfile.TemporaryDirectory(prefix="trainpack-") as scratch:
        setting = WorkSetting(roots=Roots.anywhere(), scratch_dir=Path(scratch))
        convert(Path(location), Path(scratch) / "base.gguf", setting=setting)
        yield Path(scratch) / "base.gguf"


def _can_be_asked(artifact: Artifact) -> bool:
    # the first shard of a split file opens the others
    return artifact.kind in _ASKED_FIRST and artifact.part is ModelPart.MODEL


def _first(files: Sequence[tuple[Path, str]], base: str | None, what: str) -> AskedModel:
    ordered = sorted(files, key=lambda file: (_rank(file[1]), file[0].name))
    for path, kind in ordered:
        if _rank(kind) < len(_ASKED_FIRST):
            return AskedModel(None, path, base) if kind == ArtifactKind.LORA else AskedModel(path, None, base)
    raise PackagingError(ErrorCode.GGUF_INVALID, f"{what} has no GGUF file to ask", fields={"subject": what})


def _rank(kind: str) -> int:
    return next((rank for rank, known in enumerate(_ASKED_FIRST) if known == kind), len(_ASKED_FIRST))


def _kind_by_name(path: Path) -> str:
    return ArtifactKind.LORA if path.stem.endswith("-lora") else ArtifactKind.GGUF


def _manifest(directory: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((directory / MANIFEST.recipe).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("files", []), list) else {}


def _base_in(manifest: Mapping[str, Any]) -> str | None:
    request = manifest.get("request")
    base = request.get("base_model") if isinstance(request, dict) else None
    return base if isinstance(base, str) else None
