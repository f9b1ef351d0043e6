"""Which files a model directory may name, and how its JSON is read: bounded, inside the roots, never a surprise."""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots

MAX_JSON_BYTES = 64 * 1024 * 1024  # weight indexes of the largest models are a few MiB


def resolve_member(directory: Path, name: str, allowed_roots: Roots, invalid: ErrorCode) -> Path:
    """The real path of ``name`` in ``directory``, refused where it could lead elsewhere.

    ``name`` must be a plain relative path. Symlinks are followed only to targets under the real ``directory`` or the
    ``allowed_roots`` (the Hub cache links snapshots to ``../../blobs``: pass the cache as a root).

    Raises:
        PackagingError: ``invalid`` for ``..``, absolute or empty names; ``path_not_allowed`` for a symlink out of
            the roots.
    """
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or "\\" in name or "\0" in name or PurePosixPath(name).is_absolute():
        raise PackagingError(invalid, f"{directory} names the file {name[:200]!r}, which is not a plain relative path")
    inside = directory.absolute()
    return allowed_roots.also(inside).resolve(inside / name, broken=invalid)


def read_json(path: Path, invalid: ErrorCode) -> dict[str, Any]:
    """The JSON object in ``path``; at most ``MAX_JSON_BYTES``.

    Raises:
        PackagingError: ``invalid`` where it is missing, too large, not JSON or not an object.
    """
    value = _read(path, invalid)
    if not isinstance(value, dict):
        raise PackagingError(invalid, f"{path} is not a JSON object")
    return value


def read_json_list(path: Path, invalid: ErrorCode) -> list[Any]:
    """The JSON list in ``path``, as :func:`read_json` reads an object."""
    value = _read(path, invalid)
    if not isinstance(value, list):
        raise PackagingError(invalid, f"{path} is not a JSON list")
    return value


def _read(path: Path, invalid: ErrorCode) -> Any:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise PackagingError(invalid, f"{path} is not a regular file")
        if info.st_size > MAX_JSON_BYTES:
            raise PackagingError(invalid, f"{path} has {info.st_size} bytes, at most {MAX_JSON_BYTES} are accepted")
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise PackagingError(invalid, f"{path} cannot be read: {error.strerror}") from error
    return parse_json(raw, path, invalid)


def parse_json(raw: bytes, path: Path, invalid: ErrorCode) -> Any:
    """Parse JSON, refusing duplicate keys, numbers of absurd length and absurd nesting.

    Raises:
        PackagingError: ``invalid``, naming ``path`` and the fault.
    """
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError as error:
        raise PackagingError(invalid, f"{path}: JSON nested too deeply") from error
    except ValueError as error:  # covers JSONDecodeError, UnicodeDecodeError and the limit on digits
        raise PackagingError(invalid, f"{path}: not valid JSON ({str(error)[:200]})") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return value
