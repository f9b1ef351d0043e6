"""What an optional dependency that is not installed means to the person at the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError

OWN_PACKAGES = ("api_client", "config", "worker")
_ROOT = Path(__file__).resolve().parents[2]


def hidden_module(error: ImportError) -> PackagingError | None:
    """The error that a failed import really is, where a module of someone else stands before trainpack's own.

    A producer's ``config.py`` on ``PYTHONPATH`` is found before the installed package of that name.
    """
    name = (error.name or "").partition(".")[0]
    spec = importlib.util.find_spec(name) if name in OWN_PACKAGES else None
    place = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec is not None else None
    if place is None or Path(place).resolve().is_relative_to(_ROOT / name):
        return None
    return PackagingError(
        ErrorCode.DEPENDENCY_MISSING,
        f"{place} hides trainpack's own module {name!r}: it comes first on the import path",
        remedy=f"Take {Path(place).parent} off PYTHONPATH for this command, or rename the file.",
        fields={"module": name, "path": place},
    )


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that the extra brings.

    Raises:
        PackagingError: ``dependency_missing``, naming the module and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (hidden := hidden_module(error)) is not None:
            raise hidden from error
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"the Python module {error.name!r} is not installed",
            remedy=f"Install it: pip install 'trainpack[{extra}]'.",
            fields={"module": error.name, "extra": extra},
        ) from error
