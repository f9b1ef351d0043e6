"""Whose the files of an output directory are: what a job may replace there, and what it leaves as it is.

A file is a job's own if the job's manifest names it with the digest that ``SHA256SUMS`` gives, so if no later job has
replaced it; or if it is the very file in the job's scratch, which an attempt placed that did not get as far as a
manifest.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.outputs import CHECKSUMS, MANIFEST, QUALITY, name_aside
from api_client.digest import sha256_file
from worker.stages.context import StageContext
from worker.storage.checksums import parse_checksums, read_checksums
from worker.storage.held import read_plain


def check_free(context: StageContext, target: Path, name: str, final: Path | None = None) -> None:
    """Refuse to replace a file that is not the job's own.

    Args:
        context: The stage's.
        target: The output directory.
        name: The file's name in it.
        final: The file, where its directory is held open.

    Raises:
        PackagingError: ``output_exists``.
    """
    final = target / name if final is None else final
    if not final.exists() or context.request.overwrite or _is_own(context, target, name, final):
        return
    if reporter_of(target, name) is not None:  # publish keeps it aside
        return
    raise _exists(final, "is not of this job", owner_of(target))


def check_records_free(context: StageContext, target: Path) -> None:
    """Refuse to replace a ``manifest.json`` that no job wrote, and what is no file at all.

    Raises:
        PackagingError: ``output_exists``.
    """
    for name in (MANIFEST.recipe, CHECKSUMS.recipe):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG((target / name).lstat().st_mode):  # what is read is written on, so no link may lead out
                raise _exists(target / name, "is not a file", None)
    if (target / MANIFEST.recipe).exists() and owner_of(target) is None and not context.request.overwrite:
        raise _exists(target / MANIFEST.recipe, "is not a job's manifest", None)


def owner_of(directory: Path) -> str | None:
    """Id of the job that wrote a directory's manifest; ``None`` where there is none that can be read."""
    return _job_id(_read(directory / MANIFEST.recipe))


def reporter_of(directory: Path, name: str) -> str | None:
    """Id of the job whose quality report lies there under its first name; ``None`` where the file is anything else."""
    if name != QUALITY.recipe or not (directory / name).is_file():
        return None
    digest = sha256_file(directory / name)
    for record in (directory / MANIFEST.recipe, *sorted(directory.glob(name_aside(MANIFEST, "*")))):
        content = _read(record)
        job_id = _job_id(content)
        if job_id is not None and _digests(content).get(name) == digest:
            return job_id
    return None


def _is_own(context: StageContext, target: Path, name: str, final: Path) -> bool:
    made = context.scratch / name
    if made.exists() and made.samefile(final):
        return True
    digest = _recorded(target, context.job_id).get(name)
    return digest is not None and parse_checksums(read_checksums(target / CHECKSUMS.recipe)).get(name, digest) == digest


def _recorded(directory: Path, job_id: str) -> dict[str, str]:
    """Digests of a job's files by name, from its manifest."""
    for record in (MANIFEST.recipe, name_aside(MANIFEST, job_id)):
        content = _read(directory / record)
        if content.get("job_id") == job_id:
            return _digests(content)
    return {}


def _digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {str(file["name"]): str(file["sha256"]) for file in manifest["files"]}
    except (KeyError, TypeError):
        return {}


def _job_id(manifest: Mapping[str, Any]) -> str | None:
    job_id = manifest.get("job_id")
    # it becomes a part of a file name
    return job_id if isinstance(job_id, str) and re.fullmatch(r"[\w-]+", job_id) else None


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_plain(manifest))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _exists(path: Path, reason: str, owner: str | None) -> PackagingError:
    return PackagingError(
        ErrorCode.OUTPUT_EXISTS, f"{path} exists and {reason}", fields={"path": str(path), "owner": owner}
    )
