"""Which files of a remote model directory are fetched: data that packaging reads, never code, never pickles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.kinds import ADAPTER_WEIGHTS, PICKLE_SUFFIXES
from api_client.runs.state_files import pickled_beside, unread_weights

WANTED_SUFFIXES = (
    ".json", ".safetensors", ".model", ".jinja", ".md", ".txt", ".bpe", ".spm", ".tiktoken", ".vocab",
)  # fmt: skip
_WEIGHTS = ".safetensors"
_OTHER_LAYOUTS = "consolidated"  # the same weights again, in their makers' own naming


def check_relative_name(name: str, source: str) -> None:
    """Refuse a name that, joined to a directory, could lead out of it or confuse a file system.

    Raises:
        PackagingError: ``path_not_allowed``, naming the object.
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    if not plain or "\\" in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise PackagingError(
            ErrorCode.PATH_NOT_ALLOWED,
            f"{source} holds an object named {name[:300]!r}, which is not a plain relative path",
            remedy="Rename the object in the storage.",
            fields={"source": source, "name": name[:300]},
        )


def wanted_names(names: Iterable[str], source: str) -> list[str]:
    """The names to fetch, sorted.

    Args:
        names: Relative names of everything in the directory; all of them are checked.
        source: The directory, for messages.

    Raises:
        PackagingError: ``path_not_allowed`` for a hostile name; ``weights_pickled`` where the only weights, or those
            beside an adapter, are pickles.
    """
    names = sorted(names)
    for name in names:
        check_relative_name(name, source)
    wanted = [name for name in names if PurePosixPath(name).suffix in WANTED_SUFFIXES]
    weights = [name for name in wanted if name.endswith(_WEIGHTS)]
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLE_SUFFIXES]
    if pickles and not weights:
        raise PackagingError(
            ErrorCode.WEIGHTS_PICKLED,
            f"{source} has no safetensors weights, only {', '.join(pickles[:3])}",
            fields={"source": source, "files": pickles[:20]},
        )
    adapters = [name for name in weights if PurePosixPath(name).name == ADAPTER_WEIGHTS]
    unread = unread_weights(names) if adapters else None
    if unread is not None:
        raise pickled_beside(f"{source}/{unread}", {"source": source})
    doubled = {name for name in weights if PurePosixPath(name).name.startswith(_OTHER_LAYOUTS)}
    wanted = [name for name in wanted if name not in doubled] if len(doubled) < len(weights) else wanted
    _check_no_file_is_a_directory(wanted, source)
    return wanted


def _check_no_file_is_a_directory(names: list[str], source: str) -> None:
    known = set(names)
    for name in names:
        for parent in PurePosixPath(name).parents:
            if str(parent) in known:
                raise PackagingError(
                    ErrorCode.PATH_NOT_ALLOWED,
                    f"{source}: {parent} is both an object and the directory of {name}",
                    fields={"source": source, "name": str(parent)},
                )
