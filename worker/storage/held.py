"""Directories held open, so that work goes on in them whatever becomes of their names.

Whoever may write beside a directory can put a link in its place at any moment: between a check and what was checked
lies a gap. So a directory is opened once, the system is asked where the open one lies, and every name in it is used
through the descriptor. ``/proc/self/fd/N/NAME`` is a name in the directory with descriptor N, and in no other.

One bound for a whole process, set at its start, holds for every file that is written through here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from api_client.contract.errors import PackagingError
from api_client.disk import existing, failed_write
from config.roots import Roots

_DESCRIPTORS = Path("/proc/self/fd")
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass
class Bound:
    """Where this process may write."""

    roots: Roots = field(default_factory=Roots.anywhere)


_BOUND = Bound()


def bind_writing(roots: Roots) -> None:
    """Say where this process may write, once, before it writes anything for a job."""
    _BOUND.roots = roots


class HeldDirectory:
    """An open directory. Made by :func:`hold`, :func:`hold_made` or :meth:`child`; close it, or use it in ``with``.

    Attributes:
        path: Where it lay when it was opened, links followed; for people and records.
        here: A path to it for this process, which no change of names leads elsewhere.
        descriptor: The open directory; for ``dir_fd``.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.here = _DESCRIPTORS / str(descriptor)
        self.path = self.here.readlink()
        self._children: dict[str, HeldDirectory] = {}
        self._made: list[tuple[int, str]] = []

    @property
    def made_from(self) -> Path | None:
        """The outermost directory that had to be made; ``None`` where all were there."""
        return (_DESCRIPTORS / str(self._made[0][0])).readlink() / self._made[0][1] if self._made else None

    def child(self, name: str) -> HeldDirectory:
        """A directory in this one, made where it is missing; closed with this one.

        Raises:
            PackagingError: ``output_dir_not_writable`` where it is a link, or no directory.
        """
        if name not in self._children:
            try:
                descriptor, _ = _step(self.descriptor, name)
            except OSError as error:
                raise failed_write(self.path / name, error) from error
            self._children[name] = HeldDirectory(descriptor)
        return self._children[name]

    def file(self, name: str) -> Path:
        """A path to a file by its name, ``DIRECTORY/FILE`` at most, through descriptors; raises as :meth:`child`."""
        parent, _, last = name.rpartition("/")
        return (self.child(parent) if parent else self).here / last

    @contextmanager
    def told(self) -> Iterator[None]:
        """Have errors name the directory as people know it."""
        try:
            yield
        except PackagingError as error:
            raise PackagingError(
                error.code,
                self._named(error.message),
                remedy=error.failure.remedy,
                fields={
                    key: self._named(item) if isinstance(item, str) else item for key, item in error.fields.items()
                },
            ) from error

    def _named(self, text: str) -> str:
        for inner in self._children.values():
            text = text.replace(f"{inner.here}/", f"{inner.path}/")
        return text.replace(f"{self.here}/", f"{self.path}/")

    def undo(self) -> None:
        """Remove the directories that had to be made, as far as they are empty."""
        for above, name in reversed(self._made):
            with suppress(OSError):
                os.rmdir(name, dir_fd=above)

    def close(self) -> None:
        """Let it go."""
        for inner in self._children.values():
            inner.close()
        self._children.clear()
        for above, _ in self._made:
            os.close(above)
        self._made.clear()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _below(self, name: str) -> HeldDirectory:
        """The directory of the name in this one, which is let go; made where it is missing."""
        descriptor, new = _step(self.descriptor, name)
        below = HeldDirectory(descriptor)
        below._made, self._made = self._made, []
        if new:
            below._made.append((os.dup(self.descriptor), name))
        self.close()
        return below

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hold(path: Path, roots: Roots | None = None) -> HeldDirectory:
    """Open a directory that exists.

    Args:
        path: It; links on the way are followed, and where they led to is what counts.
        roots: Where it must lie; where the process may write if not given.

    Raises:
        PackagingError: ``path_not_allowed``: it lies elsewhere.
        OSError: it cannot be opened.
    """
    held = HeldDirectory(os.open(path, _FLAGS))
    try:
        (_BOUND.roots if roots is None else roots).check_real(held.path, path)
    except BaseException:
        held.close()
        raise
    return held


def hold_in(parent: HeldDirectory, name: str) -> HeldDirectory:
    """Open a directory that exists in an open one, no link; the caller closes both.

    Raises:
        OSError: it is a link, or cannot be opened.
    """
    return HeldDirectory(_enter(parent.descriptor, name))


def hold_made(path: Path, roots: Roots | None = None) -> HeldDirectory:
    """Open a directory, which is made with those above it where they are missing.

    Args:
        path: It, absolute.
        roots: As for :func:`hold`. Nothing is made elsewhere.

    Raises:
        PackagingError: ``path_not_allowed``.
        OSError: one cannot be made or opened; those made before are removed again.
    """
    allowed = _BOUND.roots if roots is None else roots
    real = allowed.resolve(path, for_writing=True)
    start = existing(real)
    held = HeldDirectory(os.open(start, _FLAGS))
    try:
        if held.path != start:  # put there since: it may only be another place that is allowed
            allowed.check_real(held.path, path)
        for name in real.relative_to(start).parts:
            held = held._below(name)
        allowed.check_real(held.path, path)
    except BaseException:
        held.undo()
        held.close()
        raise
    return held


def _step(above: int, name: str) -> tuple[int, bool]:
    """Open the directory ``name`` in an open one, no link; and whether it had to be made."""
    made = False
    try:
        os.mkdir(name, dir_fd=above)
        made = True
    except FileExistsError:
        pass
    return _enter(above, name), made


def _enter(above: int, name: str) -> int:
    return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=above)


def check_place(descriptor: int, path: Path) -> None:
    """Refuse an open file that lies where this process may not write: what is linked from there could be written to.

    Args:
        descriptor: The open file.
        path: How it was named.

    Raises:
        PackagingError: ``path_not_allowed``.
    """
    _BOUND.roots.check_real((_DESCRIPTORS / str(descriptor)).readlink(), path)


def plain_opener(path: str, flags: int) -> int:
    """For ``open``: of a file that may not be a link, a pipe or a device.

    Raises:
        OSError: ``ELOOP`` for a link, ``ENXIO`` for what else is no file; whatever opening raises.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "not a file")
    return descriptor


def read_plain(path: Path) -> bytes:
    """Content of a file that may not be a link, a pipe or a device; raises as :func:`plain_opener`."""
    with open(path, "rb", opener=plain_opener) as file:
        return file.read()
