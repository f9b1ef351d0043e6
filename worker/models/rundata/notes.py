"""Data files that trainers' notes name. Text and JSON only: a ``training_args.bin`` is a pickle and is never opened.

===================== ============================================== ===============================================
trainer               note, in the checkpoint or its run             what names data
===================== ============================================== ===============================================
LLaMA-Factory         ``training_args.yaml``,                        ``dataset``, ``eval_dataset``: names of the
                      ``llamaboard_config.yaml``                     files of ``dataset_info.json`` in ``dataset_dir``
Axolotl               ``axolotl_config.yml``, ``config.yml``, and    ``datasets[].path``, ``test_datasets[].path``,
                      the block in its model card                    ``data_files``
ms-swift              ``args.json``                                  ``dataset``, ``val_dataset``: paths, ``#N`` after
                                                                     them takes a part
any (TRL, Unsloth)    front matter of the run's ``README.md``        ``datasets``
===================== ============================================== ===============================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.rundata.text_files import json_values, small_text, yaml_values

_CARD_BLOCK = re.compile(r"```ya?ml\n(?P<text>.*?)```", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n(?P<text>.*?)\n---", re.DOTALL)
_PART = re.compile(r"#\d+$")


@dataclass(frozen=True)
class NamedData:
    """One data file as a note names it.

    Attributes:
        path: As it stands there; may be relative, or a name on the Hub.
        held_out: The trainer evaluated on it and did not train.
        named_by: The note's file name.
        beside: Directory that a relative path may be meant from.
    """

    path: str
    held_out: bool
    named_by: str
    beside: Path


def named_data(directory: Path) -> Iterator[NamedData]:
    """Everything that notes in a directory name, the most exact notes first. What cannot be read names nothing."""
    for name, reader in _READERS:
        text = small_text(directory / name)
        if text is not None:
            yield from reader(directory, name, text)


def _llama_factory(directory: Path, name: str, text: str) -> Iterator[NamedData]:
    values = yaml_values(text)
    values = {key.removeprefix("train."): value for key, value in values.items()}
    place = values.get("dataset_dir")
    data_dir = Path(place) if isinstance(place, str) else Path("data")
    homes = [home / data_dir for home in (directory, *directory.parents[:4])]  # an absolute one stands for itself
    home = next((home for home in homes if (home / "dataset_info.json").is_file()), None)
    known = json_values(small_text(home / "dataset_info.json") or "") if home is not None else {}
    for key, held_out in (("dataset", False), ("eval_dataset", True)):
        for data in _names(values.get(key)):
            entry = known.get(data)
            file = entry.get("file_name") if isinstance(entry, Mapping) else None
            if isinstance(file, str) and home is not None:
                yield NamedData(file, held_out, name, home)


def _axolotl(directory: Path, name: str, text: str) -> Iterator[NamedData]:
    values = yaml_values(text)
    for key, held_out in (("datasets", False), ("test_datasets", True)):
        entries = values.get(key)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, Mapping):
                for path in (*_listed(entry.get("data_files")), *_listed(entry.get("path"))):
                    yield NamedData(path, held_out, name, directory)


def _swift(directory: Path, name: str, text: str) -> Iterator[NamedData]:
    values = json_values(text)
    for key, held_out in (("dataset", False), ("val_dataset", True)):
        for path in _listed(values.get(key)):
            yield NamedData(_PART.sub("", path), held_out, name, directory)


def _card(directory: Path, name: str, text: str) -> Iterator[NamedData]:
    for block in _CARD_BLOCK.finditer(text):
        yield from _axolotl(directory, name, block["text"])
    front = _FRONT_MATTER.match(text)
    for path in _listed(yaml_values(front["text"]).get("datasets")) if front else ():
        yield NamedData(path, False, name, directory)


_READERS: tuple[tuple[str, Callable[[Path, str, str], Iterator[NamedData]]], ...] = (
    ("args.json", _swift),
    ("training_args.yaml", _llama_factory),
    ("llamaboard_config.yaml", _llama_factory),
    ("axolotl_config.yml", _axolotl),
    ("axolotl_config.yaml", _axolotl),
    ("config.yml", _axolotl),
    ("config.yaml", _axolotl),
    ("README.md", _card),
)


def _names(value: Any) -> list[str]:
    """Names in a list, or with commas between them."""
    return [name.strip() for entry in _listed(value) for name in entry.split(",") if name.strip()]


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [value for value in values if isinstance(value, str) and value]
