"""Which layers attend how: what ``config.json`` says, and what llama.cpp takes for granted.

Upstream writes no pattern for some architectures, and llama.cpp then counts: every sixth layer of a Gemma 3 sees the
whole text, every fourth of a Llama 4 has no rotation. A model with another order would load and answer wrongly. Where
the file can say the order, it is said (:func:`missing_pattern`); where it cannot, the model is refused.

Source: ``load_swa_pattern``, ``set_swa_pattern`` and ``n_no_rope_layer_step`` in llama.cpp b11434, ``src/models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

_PATTERN = "attention.sliding_window_pattern"
_WINDOW = "attention.sliding_window"
# GGUF architecture -> one layer in how many sees the whole text, and whether the first of each group does
_PERIODS: Mapping[str, tuple[int, bool]] = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gpt-oss": (2, False), "laguna": (4, True), "llama4": (4, False), "mellum": (4, False),
    "modern-bert": (3, True), "olmo2": (4, False), "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
# GGUF architecture -> one layer in how many has no rotary embedding, the last of each group
_UNROTATED_STEPS: Mapping[str, int] = {"llama4": 4, "smollm3": 4}
# GGUF architecture -> key of config.json -> the one value that llama.cpp has built in
_BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {"mup_enabled": True},
    "gemma-embedding": {"use_bidirectional_attention": True},
    # whether the chosen experts' shares are made to add up to one; where the file can say it, it is not here
    **{
        name: {"norm_topk_prob": True} for name in ("cohere2moe", "lfm2moe", "mellum", "mimo2", "qwen3moe", "qwen3next")
    },
    **{name: {"norm_topk_prob": False} for name in ("olmoe", "qwen2moe")},
}
# GGUF architecture -> the number of layers with which llama.cpp has windows, and no rotation in the other layers; with
# any other it has neither, whatever the file says
_WINDOWED_DEPTH: Mapping[str, int] = {"exaone4": 64}
# GGUF architectures whose layers llama.cpp rotates by one base, that of the layers that see the whole text, whatever
# `rope.freq_base_swa` says (seen with b11549, tests/field)
_ONE_ROPE_BASE = frozenset({"mellum"})
_WHOLE_TEXT = "full_attention"
# families whose window is off unless `use_sliding_window` switches it on
_OFF_BY_DEFAULT = "qwen"


def missing_pattern(architecture: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[bool] | None:
    """Flags by layer (True: it sees a window) that a file must say, because llama.cpp would assume others.

    Args:
        architecture: GGUF architecture.
        config: The text model's ``config.json``.
        metadata: Key -> value of the file as upstream made it.

    Returns:
        None where the file says the order already, or llama.cpp assumes the right one, or the config says none.
    """
    kinds = _kinds(config)
    said = f"{architecture}.{_PATTERN}" in metadata or f"{architecture}.{_WINDOW}" not in metadata
    if said or architecture not in _PERIODS or not kinds:
        return None
    period, first = _PERIODS[architecture]
    assumed = [at % period != (0 if first else period - 1) for at in range(len(kinds))]
    flags = [kind != _WHOLE_TEXT for kind in kinds]
    return None if flags == assumed else flags


def check_assumptions(architecture: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that llama.cpp would compute otherwise, because what ``config.json`` says is built into it.

    Args:
        architecture: GGUF architecture.
        config: The text model's ``config.json``.

    Raises:
        PackagingError: ``unsupported_architecture``, naming the key.
    """
    for key, value in _BUILT_IN.get(architecture, {}).items():
        if key in config and config[key] != value:
            raise _refused(architecture, key, f"is {config[key]}; llama.cpp computes such models with {value}")
    _check_depth(architecture, config)
    _check_rotation(architecture, config)
    _check_bases(architecture, config)


def lost_window(architecture: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    """What to tell the user of a window that upstream leaves out of the file, so that llama.cpp sees the whole text.

    Args:
        architecture: GGUF architecture.
        config: The text model's ``config.json`` as it lies on disk.
        metadata: Key -> value of the file.
    """
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings")
    if not isinstance(window, int) or window <= 0 or f"{architecture}.{_WINDOW}" in metadata:
        return None
    on = config.get("use_sliding_window", not str(config.get("model_type")).startswith(_OFF_BY_DEFAULT))
    kinds = _kinds(config)
    if not on or (kinds and "sliding_attention" not in kinds) or (isinstance(longest, int) and longest <= window):
        return None
    return (
        f"config.json: layers see {window} tokens back (sliding_window); {architecture} files have no place for that, "
        f"and llama.cpp sees the whole text: the two compute the same up to {window} tokens"
    )


def _check_bases(architecture: str, config: Mapping[str, Any]) -> None:
    ropes = config.get("rope_parameters")
    if architecture not in _ONE_ROPE_BASE or not isinstance(ropes, Mapping):
        return
    bases = {kind: rope.get("rope_theta") for kind, rope in ropes.items() if isinstance(rope, Mapping)}
    if len(set(bases.values())) > 1:
        raise _refused(
            architecture, "rope_parameters",
            f"has rope_theta {', '.join(f'{base:g} for {kind}' for kind, base in sorted(bases.items()))}; "
            "llama.cpp rotates all layers by that of full_attention",
        )  # fmt: skip


def _check_depth(architecture: str, config: Mapping[str, Any]) -> None:
    depth, layers = _WINDOWED_DEPTH.get(architecture), config.get("num_hidden_layers")
    if depth is None or "sliding_window" not in config or (config["sliding_window"] is not None) == (layers == depth):
        return
    raise _refused(
        architecture, "sliding_window",
        f"is {config['sliding_window']} with {layers} layers; llama.cpp has windows with {depth} layers and no other "
        "number",
    )  # fmt: skip


def _check_rotation(architecture: str, config: Mapping[str, Any]) -> None:
    step, rotated = _UNROTATED_STEPS.get(architecture), config.get("no_rope_layers")
    if step is None or not isinstance(rotated, list) or not rotated:
        return
    if [bool(is_rotated) for is_rotated in rotated] != [(at + 1) % step != 0 for at in range(len(rotated))]:
        raise _refused(
            architecture, "no_rope_layers",
            f"is {rotated}; llama.cpp leaves the rotation out in every {step}th layer and in no other",
        )  # fmt: skip


def _refused(architecture: str, key: str, fact: str) -> PackagingError:
    return PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"config.json: {key} {fact} ({architecture})",
        fields={"key": key, "architecture": architecture},
    )


def full_attention_interval(config: Mapping[str, Any]) -> dict[str, Any]:
    """The interval that Qwen's hybrids state besides, or instead of, the kinds of their layers.

    transformers saves the kinds alone, and llama.cpp takes 4 where none is said.

    Raises:
        PackagingError: ``unsupported_architecture`` for an order that no interval makes.
    """
    kinds = _kinds(config)
    if _WHOLE_TEXT not in kinds:
        return {}
    interval = kinds.index(_WHOLE_TEXT) + 1
    places = [at for at, kind in enumerate(kinds) if kind == _WHOLE_TEXT]
    if places != list(range(interval - 1, len(kinds), interval)):
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"config.json: layer_types has {_WHOLE_TEXT} at {places}; "
            "llama.cpp has it in every nth layer of such models and in no other",
            fields={"key": "layer_types"},
        )
    return {"full_attention_interval": interval}


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """``layer_types``, empty where the config says none."""
    kinds = config.get("layer_types")
    return kinds if isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) else []
