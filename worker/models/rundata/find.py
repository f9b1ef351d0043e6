"""Which of the data files that a run's notes name can be used on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import PackagingError
from config.roots import Roots
from worker.models.evaluate.datasets import read_samples
from worker.models.rundata.notes import NamedData, named_data

_LEVELS = 3
"""So far above a note a relative path is looked for: trainers write it as seen from where they were started."""


@dataclass(frozen=True)
class RunData:
    """A run's own data.

    Attributes:
        path: The file that it was trained on; of one that has none, the file that it was evaluated on.
        held_out: A file that it was evaluated on and not trained, where there is one.
        named_by: The note that names them.
        passed_over: Of what could not be used, why; a sentence each.
    """

    path: Path | None
    held_out: Path | None
    named_by: str
    passed_over: tuple[str, ...] = ()


def find_run_data(directories: Sequence[Path], roots: Roots) -> RunData:
    """The first usable data file that notes in these directories name.

    Args:
        directories: The checkpoint's, then its run's.
        roots: A file elsewhere is passed over, wherever a link leads.
    """
    passed_over: list[str] = []
    usable: dict[bool, tuple[Path, str]] = {}
    for named in (place for directory in directories for place in named_data(directory)):
        if named.held_out in usable:
            continue
        path = _usable(named, roots, passed_over)
        if path is not None:
            usable[named.held_out] = (path, named.named_by)
    trained, held_out = usable.get(False), usable.get(True)
    first = trained or held_out
    return RunData(
        path=first[0] if first else None,
        held_out=held_out[0] if held_out and trained else None,
        named_by=first[1] if first else "",
        passed_over=tuple(dict.fromkeys(passed_over)),
    )


def _usable(named: NamedData, roots: Roots, passed_over: list[str]) -> Path | None:
    for place in _places(named):
        if not (place.exists() or place.is_symlink()):
            continue
        try:
            path = roots.resolve(place)
            if not path.is_file():
                continue
            read_samples(path)
        except PackagingError as error:
            passed_over.append(f"{named.named_by} names {named.path}: {error.message}")
            return None
        return path
    if named.path.startswith("/"):
        passed_over.append(f"{named.named_by} names {named.path}, which is not here")
    return None


def _places(named: NamedData) -> Iterator[Path]:
    path = Path(named.path)
    if path.is_absolute():
        yield path
        return
    beside = named.beside.resolve()
    for above in (beside, *beside.parents[:_LEVELS]):
        yield above / path
