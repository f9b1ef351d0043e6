"""What a packaged file says of itself: name, lineage, licence, who packaged it. Nothing of this machine.

Upstream derives most ``general.*`` keys from a model card and a directory name. For a merged model neither is right:
the card is the base model's, which names the *base's* parents. :func:`describe` composes the card that the result
deserves; upstream reads it from the staged directory by its own rules. What no card can say goes through upstream's
override file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode
from worker.models.checkpoint.files import read_json
from worker.models.convert.card import Card, is_hub_id, read_card
from worker.models.convert.staging import display_name
from worker.models.convert.tokenizer import JSON, TokenizerChoice, json_vocabulary, special_token

# of the base's card, what is as true of a model trained from it
_INHERITED = ("license", "license_name", "license_link", "language", "languages", "pipeline_tag", "tags")
# of the run's card, what training knows better
_TRAINED = ("datasets", "dataset", "language", "languages", "tags")


@dataclass(frozen=True)
class ModelMetadata:
    """What to say of a packaged model.

    Attributes:
        base_name: The base model's name for people.
        base_id: Its Hub id, where known.
        card: Head of the model card.
        overrides: ``general.*`` keys that replace what upstream makes of the card and of the directory's name.
    """

    base_name: str
    base_id: str | None
    card: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Naming:
    """Which file of a model is made, and what it says of it.

    Attributes:
        metadata: From :func:`describe`; None for what upstream makes of the base model's own card.
        model_name: ``general.name``; wins over ``metadata``.
        part: The text model, or the projector of pictures and sound.
        projector_left_out: Of a text model whose projector is made beside it, the weights that no tensor of that file
            is made of; None where none is made.
    """

    metadata: ModelMetadata | None = None
    model_name: str | None = None
    part: ModelPart = ModelPart.MODEL
    projector_left_out: Collection[str] | None = None


OWN_CARD = Naming()
"""What upstream makes of the base model's own card."""


def describe(
    base_dir: Path, *, checkpoint_dir: Path | None = None, adapter_base: str | None = None, name: str | None = None
) -> ModelMetadata:
    """Compose the metadata of a packaged file from the cards beside its inputs.

    Args:
        base_dir: The base model.
        checkpoint_dir: The adapter's checkpoint, None where the base model is packaged as it is.
        adapter_base: ``base_model_name_or_path`` of the adapter; used only where it is a Hub id.
        name: ``general.name``; for a merged model without one, base model and checkpoint name together.
    """
    base_name, base_id = display_name(base_dir), _hub_id(base_dir, adapter_base)
    base_card = _head(base_dir)
    overrides: dict[str, Any] = {"general.quantized_by": packager()}
    if name is not None:
        overrides["general.name"] = name
    if checkpoint_dir is None:
        return ModelMetadata(base_name, base_id, base_card, overrides)
    run_card = _head(checkpoint_dir) or _head(checkpoint_dir.parent)
    card = {key: base_card[key] for key in _INHERITED if key in base_card}
    card |= {key: run_card[key] for key in _TRAINED if key in run_card}
    card["base_model"] = base_id or base_name
    overrides.setdefault("general.name", f"{base_name} {checkpoint_dir.name}")
    return ModelMetadata(base_name, base_id, card, overrides)


def packager() -> str:
    """``trainpack`` and its version."""
    try:
        return f"trainpack {version('trainpack')}"
    except PackageNotFoundError:  # run from a source tree
        return "trainpack"


def end_tokens(tokenizer: TokenizerChoice, config: Mapping[str, Any]) -> list[str]:
    """Texts of the tokens that end an answer: by the tokenizer, the generation config and the model config."""
    texts = [text for text in [special_token(tokenizer, "eos")] if text is not None]
    ids: list[Any] = []
    for source in (tokenizer.generation_config, config, config.get("text_config")):
        value = source.get("eos_token_id") if isinstance(source, Mapping) else None
        ids += value if isinstance(value, list) else [value]
    known = _texts_by_id(tokenizer)
    texts += [known[value] for value in ids if type(value) is int and value in known]
    return list(dict.fromkeys(texts))


def _texts_by_id(tokenizer: TokenizerChoice) -> dict[int, str]:
    vocabulary: dict[int, str] = {}
    if JSON in tokenizer.files:
        description = read_json(tokenizer.files[JSON], ErrorCode.TOKENIZER_UNSUPPORTED)
        vocabulary = {value: text for text, value in json_vocabulary(description).items()}
    for key, token in tokenizer.config.get("added_tokens_decoder", {}).items():
        if str(key).isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str):
            vocabulary[int(key)] = token["content"]
    return vocabulary | {token["id"]: token["content"] for token in tokenizer.added_tokens}


def _head(directory: Path) -> Mapping[str, Any]:
    card: Card | None = read_card(directory)
    return card.data if card is not None else {}


def _hub_id(base_dir: Path, adapter_base: str | None) -> str | None:
    """The base's Hub id: by the adapter, or by the name of its snapshot in the Hub cache."""
    if adapter_base is not None and is_hub_id(adapter_base) and not Path(adapter_base).exists():
        return adapter_base
    repository = base_dir.resolve().parent.parent.name
    if base_dir.resolve().parent.name == "snapshots" and repository.startswith("models--"):
        owner, _, name = repository.removeprefix("models--").partition("--")
        return f"{owner}/{name}" if name else None
    return None


def languages_of(card: Mapping[str, Any]) -> Sequence[str]:
    """Languages a card names, as a list."""
    value = card.get("language", card.get("languages"))
    return [value] if isinstance(value, str) else [str(item) for item in value or ()]
