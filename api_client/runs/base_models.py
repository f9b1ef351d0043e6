"""The base model of a run as the run's own files name it: where nobody gives one, or it is no longer where it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from api_client.contract.errors import PackagingError
from api_client.contract.locations import is_remote
from api_client.runs.files import ADAPTER_SUBDIRECTORIES, RunFiles
from api_client.runs.kinds import ADAPTER_CONFIG
from api_client.words.suggestions import nearest

RUN_CONFIGS = ("args.json", "training_args.json", "training_args.yaml", "train_config.yaml", "config.json")
"""What trainers write beside their checkpoints; the last one is the model's own, which names what it was made from."""
_KEYS = ("base_model_name_or_path", "model_name_or_path", "base_model", "model", "_name_or_path")
_MOST_BYTES = 2**20


class NamedBase(NamedTuple):
    """One mention: the base model as it is named there, and the file that names it, relative to the run."""

    location: str
    file: str


def named_base_models(run: RunFiles, checkpoint: str) -> Iterator[NamedBase]:
    """Every mention, the adapter's own first, then those of the run. Nothing is looked at where they lead.

    Args:
        run: The run's directory.
        checkpoint: Name of the checkpoint; empty where the run is one itself.
    """
    places = [
        *(_path(checkpoint, sub, ADAPTER_CONFIG) for sub in ADAPTER_SUBDIRECTORIES),
        *(_path(place, name) for place in dict.fromkeys((checkpoint, "")) for name in RUN_CONFIGS),
    ]
    for file in places:
        values = _values(run, file)
        named = next((value for key in _KEYS if isinstance(value := values.get(key), str) and value), None)
        if named is not None:
            yield NamedBase(named, file)


def base_location(name: str) -> str | None:
    """What a request takes for a base model that files name; a model of the Hub is named there without its scheme.

    Returns:
        The location; None for a relative path, which means nothing elsewhere.
    """
    if name.startswith("/") or is_remote(name):
        return name
    return f"hf://{name}" if name.count("/") == 1 and all(name.split("/")) and not name.startswith(".") else None


def first_usable(named: Iterable[NamedBase]) -> NamedBase | None:
    """The first mention that a request can take and that is here, else the first that it can take.

    One that is not here is reported as missing, or looked for by a worker on another machine.
    """
    usable = [NamedBase(place, base.file) for base in named if (place := base_location(base.location)) is not None]
    here = (base for base in usable if is_remote(base.location) or Path(base.location).is_dir())
    return next(here, usable[0] if usable else None)


def likely_base(missing: str, run: RunFiles | None, checkpoint: str, may_read: Callable[[str], bool]) -> str | None:
    """The directory that was perhaps meant by a base model's path that leads nowhere; a suggestion, never a choice.

    Args:
        missing: A local path that does not exist.
        run: The run that the checkpoint belongs to, whose own files name a base model.
        checkpoint: The checkpoint's name.
        may_read: Whether a path may be looked at, and told.

    Returns:
        A neighbour whose name is spelt alike, else a directory that the run's files name.
    """
    place = Path(missing)
    while place.name and not place.parent.is_dir():
        place = place.parent
    if place.name and may_read(str(place.parent)):
        alike = nearest(place.name, _directories(place.parent))
        meant = place.parent / alike / Path(missing).relative_to(place) if alike else None
        if meant is not None and meant.is_dir() and may_read(str(meant)):
            return str(meant)
    named = named_base_models(run, checkpoint) if run is not None else ()
    paths = (base.location for base in named if base.location.startswith("/"))
    return next((path for path in paths if may_read(path) and (Path(path) / "config.json").is_file()), None)


def _directories(place: Path) -> list[str]:
    try:
        return [entry.name for entry in place.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _path(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _values(run: RunFiles, file: str) -> dict[str, Any]:
    """The top level of a small JSON or YAML file; nothing where it cannot be read."""
    try:
        text = run.read(file, 0, _MOST_BYTES)
        if file.endswith(".json"):
            values = json.loads(text)
            return values if isinstance(values, dict) else {}
        lines = text.decode("utf-8", "replace").splitlines()
    except (OSError, ValueError, RecursionError, PackagingError):
        return {}
    pairs = (re.fullmatch(r"""(\w+):\s+(["']?)(.+?)\2\s*(#.*)?""", line) for line in lines)
    return {pair[1]: pair[3] for pair in pairs if pair}
