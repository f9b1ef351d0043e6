"""The projector of a vision or audio model: the encoder, and what maps its output into the text model.

It is a file of its own, which llama.cpp loads beside the text model (``--mmproj``). Upstream has a class for each
projector as it has one for each text model, so the same plan and the same writer make it, of the same base model and
the same overlay. Here is decided whether a model has one, and whether the file holds all that its config announces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.upstream import supported_architectures, upstream_version

_ENCODER_CONFIGS = (
    "vision_config", "audio_config", "whisper_config", "vision_encoder", "audio_encoder", "encoder_config",
    "sound_config", "speech_config", "speaker_encoder_config", "thinker_config", "vision_tower_config",
)  # fmt: skip
"""Keys of ``config.json`` under which upstream's projector classes look for an encoder's dimensions."""
PREPARATION = ("preprocessor_config.json", "processor_config.json")
"""Files that say how an encoder's input is made: its size, mean and spread."""
_ENCODERS = {
    "clip.vision.block_count": re.compile(r"v\.blk\.(\d+)\."),
    "clip.audio.block_count": re.compile(r"a\.blk\.(\d+)\."),
}
"""Number of an encoder's layers in the metadata -> how its tensors name them."""

_EMBEDDING = "model.embed_tokens.weight"
_FLAT_TOWER = re.compile(r"(^|\.)vision_tower\.embeddings\.patch_embedding\.")
_FLAT_PART = re.compile(r"((?:^|\.)vision_tower\.)((?:embeddings|encoder\.layers|pre_layrnorm|post_layernorm|head)\.)")


@dataclass(frozen=True)
class Senses:
    """What ``config.json`` says of pictures and sound.

    Attributes:
        announced: Keys that describe an encoder.
        architecture: By which upstream chooses the projector's class; ``None`` where it has none for this model.
    """

    announced: tuple[str, ...]
    architecture: str | None

    @property
    def has_projector(self) -> bool:
        """Whether a projector can be made of such a model."""
        return bool(self.announced) and self.architecture is not None


def senses_of(config: Mapping[str, Any], llama_cpp_dir: Path | None = None) -> Senses:
    """Read it from the config alone; imports neither torch nor upstream.

    Raises:
        PackagingError: as :func:`~worker.models.convert.upstream.supported_architectures`.
    """
    announced = tuple(key for key in _ENCODER_CONFIGS if isinstance(config.get(key), Mapping) and config[key])
    known = supported_architectures(llama_cpp_dir, ModelPart.PROJECTOR) if announced else frozenset()
    return Senses(announced, next((name for name in _named(config) if name in known), None))


def no_projector(senses: Senses, config: Mapping[str, Any], llama_cpp_dir: Path | None = None) -> PackagingError:
    """The error for a projector that was asked for by name and cannot be made."""
    if not senses.announced:
        fact = "config.json describes no encoder of pictures or sound, so the model has no projector"
    else:
        name = next(iter(_named(config)), "this model")
        fact = f"{upstream_version(llama_cpp_dir)} makes no projector of {name}"
    return PackagingError(
        ErrorCode.PROJECTOR_INVALID, fact, fields={"field": "projector", "encoders": list(senses.announced)}
    )


def says_how_to_prepare(places: Iterable[Path]) -> bool:
    """Whether one of these directories says how pictures and sound are prepared for the encoder."""
    return any((place / name).is_file() for place in places for name in PREPARATION)


def names_for(model_class: type[Any], names: Collection[str]) -> Callable[[str], str]:
    """How a projector's class is to be shown the weights' names.

    transformers 5 saves SigLIP and CLIP towers without the ``vision_model.`` that upstream goes by. And Pixtral's class
    takes the embedding of ``[IMG_BREAK]`` from the text model, whose names the class above it drops unseen: without the
    row llama.cpp does not load the file.

    Args:
        model_class: Upstream's class of the projector.
        names: Names of all tensors of the model.
    """
    flat = any(_FLAT_TOWER.search(name) for name in names)
    takes_a_row = bool(getattr(model_class, "use_break_tok", False))

    def shown(name: str) -> str:
        if takes_a_row and name.endswith(_EMBEDDING):
            return _EMBEDDING
        return _FLAT_PART.sub(r"\1vision_model.\2", name) if flat else name

    return shown


def check_complete(metadata: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse a projector whose encoders have fewer layers than its metadata announces: it would not load.

    Args:
        metadata: Of the planned file.
        tensors: GGUF names of its tensors.

    Raises:
        PackagingError: ``projector_invalid`` naming the layers.
    """
    names = tuple(tensors)
    for key, layer in _ENCODERS.items():
        announced = metadata.get(key)
        held = {int(match[1]) for name in names if (match := layer.match(name))}
        if not held or not isinstance(announced, int):
            continue
        missing = sorted(set(range(announced)) - held)
        if missing:
            raise PackagingError(
                ErrorCode.PROJECTOR_INVALID,
                f"config.json announces {announced} encoder layers, and the weights lack {_listed(missing)}",
                fields={"announced": announced, "missing": missing[:100]},
            )


def _named(config: Mapping[str, Any]) -> Iterable[str]:
    """Architecture names in upstream's order: an encoder that names its own goes first."""
    for part in (config.get("vision_config"), config):
        named = part.get("architectures") if isinstance(part, Mapping) else None
        if isinstance(named, list) and named and isinstance(named[0], str):
            yield named[0]


def _listed(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:3]))
    return f"layers {shown} and {len(layers) - 3} more" if len(layers) > 3 else f"layer {shown}"
