"""Which local directories jobs may use: one value, made by the settings, that every path of a job goes through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError


@dataclass(frozen=True)
class Roots:
    """The directories that jobs may read and write. Made by :meth:`anywhere` or :meth:`only`.

    Attributes:
        directories: The roots; none where there is no bound.
        bound: Whether paths must lie below one of them. Bound to no directory at all allows nothing.
    """

    directories: tuple[Path, ...]
    bound: bool

    @classmethod
    def anywhere(cls) -> Roots:
        """No bound: one's own machine."""
        return cls((), bound=False)

    @classmethod
    def only(cls, *directories: Path) -> Roots:
        """These directories and what lies below them."""
        return cls(directories, bound=True)

    def also(self, *directories: Path) -> Roots:
        """The same, with further directories: a model's own, for the links inside it."""
        return Roots((*self.directories, *directories), bound=True) if self.bound else self

    def resolve(
        self, path: str | Path, *, for_writing: bool = False, broken: ErrorCode = ErrorCode.PATH_NOT_ALLOWED
    ) -> Path:
        """The real place of a local path, symlinks followed, where it may be used. It need not exist.

        Args:
            path: An absolute path.
            for_writing: Said in the message.
            broken: Code where the path has no real place: a loop of links, a NUL.

        Raises:
            PackagingError: ``path_not_allowed``, ``broken``; the message does not say where a symlink leads.
        """
        try:
            given = Path(path)
            real = given.resolve()
            relative = not given.is_absolute()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links (either, by Python version); a NUL
            raise self._refusal(broken, path, f"cannot be resolved: {error}") from error
        if relative:
            raise self._refusal(ErrorCode.PATH_NOT_ALLOWED, path, "is not an absolute path")
        if self._hold(real):
            return real
        raise self._outside(path, "write" if for_writing else "read")

    def check_real(self, real: Path, path: str | Path) -> None:
        """Refuse what lies elsewhere: for what is open, whose place the system has told.

        Args:
            real: Where it lies; no link in it is followed.
            path: How it was named.

        Raises:
            PackagingError: ``path_not_allowed``.
        """
        if not self._hold(real):
            raise self._outside(path, "write")

    def _hold(self, real: Path) -> bool:
        return not self.bound or any(real.is_relative_to(root.resolve()) for root in self.directories)

    def _outside(self, path: str | Path, verb: str) -> PackagingError:
        way = "leads" if any(Path(path).is_relative_to(root) for root in self.directories) else "is"
        reason = f"{way} outside the directories this worker may {verb} ({self})"
        return self._refusal(ErrorCode.PATH_NOT_ALLOWED, path, reason)

    def allow(self, path: str | Path) -> bool:
        """Whether :meth:`resolve` takes a path."""
        try:
            self.resolve(path)
        except PackagingError:
            return False
        return True

    def __str__(self) -> str:
        names = ", ".join(map(str, self.directories)) or "none"
        return names if self.bound else "any"

    def _refusal(self, code: ErrorCode, path: str | Path, reason: str) -> PackagingError:
        return PackagingError(
            code,
            f"{str(path)!r} {reason}" if "\0" in str(path) else f"{path} {reason}",
            fields={"path": str(path), "allowed_roots": [str(root) for root in self.directories]},
        )


NOWHERE_ELSE = Roots.only()
"""Where links inside a directory may lead if nobody says otherwise: not out of it."""
