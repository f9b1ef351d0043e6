"""What an optional dependency that is not installed means to the person at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api_client.contract.errors import ErrorCode, PackagingError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that the extra brings.

    Raises:
        PackagingError: ``dependency_missing``, naming the module and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"the Python module {error.name!r} is not installed",
            remedy=f"Install it: pip install 'trainpack[{extra}]'.",
            fields={"module": error.name, "extra": extra},
        ) from error
