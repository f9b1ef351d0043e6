"""Compiled code kept on disk.

A file is named for everything that its code depends on, and stored with the digest of name and code, so that one that
was cut off, altered or mixed up with another is compiled again instead of run. Whoever can write there can put code
into the worker, with a right digest too: so files are taken only from where this user, or root, alone can write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite  # type: ignore[import-untyped]

from worker.storage.private_place import is_open, others_write

_DIGEST_BYTES = 32


def kept(name: str, target: tuple[str, ...], cache_dir: Path | None, make: Callable[[], bytes]) -> bytes:
    """What the cache has under a name, or what is made and put there now.

    Args:
        name: What the code is.
        target: What it was compiled for.
        cache_dir: The cache; None keeps nothing. A folder that cannot be written to is as good as none, and so is one
            that others can write to.
        make: Compiles.
    """
    path = None if cache_dir is None or others_write(cache_dir) else cache_dir / f"{name}-{_key(target)}.o"
    code = None if path is None else _read(path)
    if code is None:
        code = make()
        if path is not None:
            _write(path, code)
    return code


def _key(target: tuple[str, ...]) -> str:
    parts = [_source_digest(), llvmlite.__version__, *target]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(path: Path, code: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + code).digest()


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if is_open(os.fstat(file.fileno())):
                return None
            stored = file.read()
    except OSError:
        return None
    code = stored[_DIGEST_BYTES:]
    return code if _digest(path, code) == stored[:_DIGEST_BYTES] else None


def _write(path: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(path, code) + code)
            # a worker of another user may have to read what an image was built with
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
