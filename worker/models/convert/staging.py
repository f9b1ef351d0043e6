"""The directory that the conversion package is shown instead of the model's own.

It holds JSON that was read, checked and written again, links to the few inert files upstream reads, and an empty file
per weight shard (the weights come from ``weights``). No Python file, no pickle, no ``auto_map``, no path of this
machine is in it, so nothing in it can be run or leak. Its name is the model's, because upstream makes
``general.name`` of it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import NOWHERE_ELSE, Roots
from worker.models.checkpoint import BaseModel
from worker.models.convert.card import Card, is_hub_name, read_card, write_card
from worker.models.convert.consulted import stage_consulted, without_code
from worker.models.convert.nextn import config_without_absent_layers
from worker.models.convert.older_form import older_config, older_files
from worker.models.convert.repairs import repaired
from worker.models.convert.tokenizer import (
    CONFIG,
    JSON,
    MORE_TEMPLATES,
    TEKKEN,
    Template,
    TokenizerChoice,
    special_token,
    token_id,
)
from worker.models.convert.weights import MergedWeights

_SPECIAL = ("bos", "eos", "pad", "unk")
_COUNT = re.compile(r"vocab_size.*|(n|num)_(.*_)?(layers?|blocks?|experts?|heads?)(_.*)?")
_MAX_TOKENS, _MAX_LAYERS = 1 << 24, 1 << 16
_INVALID = ErrorCode.BASE_MODEL_INVALID


def stage(
    directory: Path,
    weights: MergedWeights,
    tokenizer: TokenizerChoice | None,
    config_changes: Mapping[str, Any],
    *,
    card: Card | None,
    allowed_roots: Roots = NOWHERE_ELSE,
) -> Path:
    """Write the staged directory.

    Args:
        directory: Empty directory to make it in.
        weights: Base model and overlay.
        tokenizer: The tokenizer to package; None stages none (LoRA files hold no vocabulary).
        config_changes: Changes to ``config.json``, dotted where nested, as ``Overlay.config_changes()``.
        card: The card that describes the result.
        allowed_roots: Where symlinks of the base model may lead.

    Returns:
        The staged directory, inside ``directory`` and named like the model.

    Raises:
        PackagingError: ``base_model_invalid``, ``path_not_allowed``.
    """
    base = weights.base
    staged = directory / display_name(base.directory)
    staged.mkdir()
    shards = weights.shards()
    for shard in shards:
        (staged / shard).touch()
    names = [name for entries in shards.values() for name in entries]
    write_json(staged / "config.json", repaired(staged_config(base, tokenizer, config_changes, names)))
    places = tokenizer.places if tokenizer is not None else [base.directory]
    stage_consulted(staged, base.directory, places, allowed_roots)
    own = read_card(base.directory)
    if card is not None or own is not None:
        # the text is the base model's whoever says the rest: upstream looks for a heading in it
        write_card(staged, Card(card.data if card is not None else {}, own.text if own is not None else ""))
    if tokenizer is not None:
        stage_tokenizer(staged, tokenizer)
    return staged


def display_name(directory: Path) -> str:
    """A model directory's name for people: the repository's name where it is a snapshot in the Hub cache.

    Otherwise the name as it is, since upstream makes ``general.*`` of it, without what no text can hold.
    """
    resolved = directory.resolve()
    if resolved.parent.name == "snapshots" and resolved.parent.parent.name.startswith("models--"):
        return resolved.parent.parent.name.rpartition("--")[2]
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "-", resolved.name) or "model"


def staged_config(
    base: BaseModel, tokenizer: TokenizerChoice | None, config_changes: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """``config.json`` for the converter: the merged model's, mended where it and the model disagree.

    Args:
        base: The base model.
        tokenizer: Where its special tokens differ from the config's, they win.
        config_changes: As for :func:`stage`.
        names: Names of all tensors of the merged model.

    Raises:
        PackagingError: ``base_model_invalid`` for absurd counts and for extra layers of which some are missing.
    """
    config = merged_config(base, config_changes)
    _check_counts(config)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    text.update(config_without_absent_layers(text, names))
    if tokenizer is not None:
        for kind in _SPECIAL:
            text_of = special_token(tokenizer, kind)
            known = token_id(tokenizer, text_of) if text_of is not None else None
            for part in (config, text):
                if known is not None and type(part.get(f"{kind}_token_id")) is int:
                    part[f"{kind}_token_id"] = known
    return config


def _check_counts(config: Mapping[str, Any]) -> None:
    """Refuse counts that would have upstream build tables without end: it makes some for every layer and token."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(value)
        limit = _MAX_TOKENS if key.startswith("vocab_size") else _MAX_LAYERS
        if isinstance(value, int) and value > limit and _COUNT.fullmatch(key):
            raise PackagingError(_INVALID, f"config.json: {key} is {value}, at most {limit} make sense")


def merged_config(base: BaseModel, config_changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the merged model, without anything that names code or a local path."""
    config = without_code(copy.deepcopy(dict(base.config)))
    if not is_hub_name(config.get("_name_or_path")):
        config.pop("_name_or_path", None)
    for key, value in config_changes.items():
        _set_dotted(config, key, value)
    return config


def stage_tokenizer(staged: Path, tokenizer: TokenizerChoice) -> None:
    """Write or link everything of a tokenizer, its template in both places where upstream looks for one."""
    for name, path in tokenizer.files.items():
        # beside tokenizer.json nothing is read of tekken.json, but transformers would hand all over to mistral-common
        if name != CONFIG and not (name == TEKKEN and JSON in tokenizer.files):
            (staged / name).symlink_to(path)
    for name, content in older_files(tokenizer).items():
        if isinstance(content, bytes):
            (staged / name).write_bytes(content)
        else:
            write_json(staged / name, content)
    config = older_config(tokenizer)
    config.pop("chat_template", None)
    template = tokenizer.chat_template
    if template is not None:
        config["chat_template"] = template
        write_template(staged, template)
    if config:
        write_json(staged / CONFIG, config)
    if tokenizer.generation_config:
        write_json(staged / "generation_config.json", without_code(dict(tokenizer.generation_config)))


def write_template(directory: Path, template: Template) -> None:
    """Write a chat template as transformers saves it: the default one, and any others in a directory of their own."""
    if isinstance(template, str):
        named = {"default": template}
    else:
        named = {item["name"]: item["template"] for item in template}
    default = named.pop("default", None) or next(iter(named.values()))
    (directory / "chat_template.jinja").write_text(default, encoding="utf-8")
    for name, text in named.items():
        if re.fullmatch(r"[\w-]+", name):
            (directory / MORE_TEMPLATES).mkdir(exist_ok=True)
            (directory / MORE_TEMPLATES / f"{name}.jinja").write_text(text, encoding="utf-8")


def _set_dotted(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
