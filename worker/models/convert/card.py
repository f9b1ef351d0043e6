"""Model cards: the YAML head of a ``README.md``, read with bounds, and freed of this machine's paths.

Trainers write local paths into cards (``base_model: /home/...``); upstream would copy them into the packaged file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from worker.models.convert.tokenizer import hub_blobs

CARD = "README.md"
_MAX_BYTES = 1024 * 1024
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LOCAL_PATH = re.compile(r"(^|[:\s])(/|~/|\.\.?/|file:|[A-Za-z]:\\\\)")
_WEB = re.compile(r"https?://[^\s]+")
# keys whose values name models, data sets or places
_REFERENCES = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        data: The YAML head, references to local paths taken out.
        text: What follows it.
    """

    data: Mapping[str, Any]
    text: str


def is_hub_name(name: object) -> bool:
    """Whether ``name`` has the form ``owner/name`` of the Hub, or that of its oldest models, which have no owner."""
    return isinstance(name, str) and _HUB_NAME.fullmatch(name) is not None and ".." not in name


def is_hub_id(name: object) -> bool:
    """Whether ``name`` has the form ``owner/name`` of the Hub; never true for absolute or dotted paths."""
    return is_hub_name(name) and "/" in str(name)


def read_card(directory: Path) -> Card | None:
    """The directory's card; None where there is none, or none that is safe to read (a link, a pipe, YAML aliases)."""
    path = directory / CARD
    try:
        if not (path.is_file() and _belongs_to(path, directory)) or path.stat().st_size > _MAX_BYTES:
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return Card({}, "\n".join(lines))
    end = lines.index("---", 1)
    head = "\n".join(lines[1:end]).replace("\t", "  ").replace("- no\n", '- "no"\n') + "\n"
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(head)):
            return None
        data = yaml.safe_load(head)
    except (yaml.YAMLError, RecursionError):
        return None
    return Card(_public(data) if isinstance(data, dict) else {}, "\n".join(lines[end + 1 :]))


def _belongs_to(path: Path, directory: Path) -> bool:
    """Whether a file is the directory's own, or linked from the Hub cache's ``blobs`` as everything there is."""
    real = path.resolve()
    return any(real.is_relative_to(root.resolve()) for root in (directory, *hub_blobs(directory)))


def write_card(directory: Path, card: Card) -> None:
    """Write a card as ``README.md``."""
    head = f"---\n{yaml.safe_dump(dict(card.data), sort_keys=False, allow_unicode=True)}---\n" if card.data else ""
    (directory / CARD).write_text(head + card.text + "\n", encoding="utf-8")


def _public(data: Mapping[str, Any]) -> dict[str, Any]:
    """The head without local paths: in references, in tags such as ``base_model:adapter:/home/...``, anywhere else."""
    kept = {}
    for key, value in data.items():
        allowed = _is_public_reference if key in _REFERENCES else _is_public
        if isinstance(value, list):
            entries = [entry for entry in value if allowed(entry)]
            if entries:
                kept[str(key)] = entries
        elif allowed(value):
            kept[str(key)] = value
    return kept


def _is_public_reference(entry: Any) -> bool:
    return isinstance(entry, str) and bool(_HUB_NAME.fullmatch(entry) or _WEB.fullmatch(entry))


def _is_public(entry: Any) -> bool:
    return not (isinstance(entry, str) and _LOCAL_PATH.search(entry))
