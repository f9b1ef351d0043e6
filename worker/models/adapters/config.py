"""``adapter_config.json``: what of it decides the merge, and what in it cannot be merged."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.trainer_keys import TRAINER_KEYS

# Settings of a LoRA adapter that change what its tensors mean so that no set of merged weights can express them.
# Value: why, and what to do.
_UNMERGEABLE: Mapping[str, tuple[str, str]] = {
    "arrow_config": ("Arrow routes every token through other adapters", "Package one of the routed adapters instead."),
    "use_qalora": ("QA-LoRA pools its inputs by quantization group", "Merge it with PEFT into its quantized base."),
    "use_bdlora": ("block-diagonal LoRA is not read here", "Merge it with PEFT first."),
    "kasa_config": ("KaSA truncates the base weights when it is attached", "Merge it with PEFT first."),
    "monteclora_config": ("MonteCLoRA samples its weights", "Merge it with PEFT first."),
    "layer_replication": (
        "layer_replication makes a model with more layers than the base",
        "Merge it with PEFT and package the result with `quantize_base`.",
    ),
}
# Settings without a say in the merge, or read elsewhere. Any other one that is switched on belongs to a newer PEFT.
_KNOWN = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "auto_mapping", "base_model_class", "base_model_name_or_path", "bias",
    "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "parent_library",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_modules_to_tie", "target_parameters", "task_type", "trainable_token_indices",
    "use_dora", "use_rslora", "velora_config",
})  # fmt: skip
# Initialisations that replaced the base weights by a residual when training began.
_ALTERS_BASE = ("corda", "loftq", "lora_ga", "pissa_niter_")


@dataclass(frozen=True)
class LoraSettings:
    """The settings of a LoRA adapter that its merge depends on.

    Attributes:
        r: Rank where no pattern says otherwise; the tensors' own rank decides.
        lora_alpha: Alpha where no pattern matches.
        alpha_pattern: Regex -> alpha, in file order.
        use_rslora: Scaling is alpha / sqrt(r) instead of alpha / r.
        use_dora: Weight-decomposed: each target has a magnitude vector.
        fan_in_fan_out: The adapted layers store (i, o) weights.
        ensure_weight_tying: The adapter of the embedding is the head's as well.
        init_lora_weights: As written; some initialisations altered the base.
        trainable_token_indices: Token ids per embedding name, or for the only one.
        target_parameters: Endings of parameter names that are adapted directly, e.g. ``mlp.experts.gate_up_proj``.
        invocation_tokens: Of an activated LoRA (aLoRA), the token ids after which it applies; empty for any other.
    """

    r: int
    lora_alpha: float
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    ensure_weight_tying: bool
    init_lora_weights: object
    trainable_token_indices: Mapping[str, list[int]]
    target_parameters: frozenset[str]
    invocation_tokens: tuple[int, ...] = ()

    @property
    def through_peft(self) -> bool:
        """Whether PEFT derives a part of the merge from the base weights when it attaches the adapter."""
        return self.init_lora_weights in ("pissa", "olora")

    def alpha_of(self, module: str) -> float:
        """Alpha of a module: the first pattern, in file order, that matches the end of its path as PEFT matches it."""
        for pattern, alpha in self.alpha_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return alpha
        return self.lora_alpha

    def scaling_of(self, module: str, rank: int) -> float:
        """What the low-rank product of a module is multiplied with."""
        return self.scale(self.alpha_of(module), rank)

    def scale(self, alpha: float, rank: int) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA; the same Python float arithmetic as PEFT's."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def lora_settings(config: Mapping[str, Any], where: str) -> LoraSettings:
    """Read the settings of a LoRA adapter.

    Raises:
        PackagingError: ``adapter_invalid`` for a value of the wrong kind, ``adapter_unsupported`` for what cannot be
            merged.
    """
    _refuse_unmergeable(config, where)
    return LoraSettings(
        r=int(_number(config, "r", 8, where)),
        lora_alpha=_number(config, "lora_alpha", 8, where),
        alpha_pattern=_patterns(config, "alpha_pattern", where),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        ensure_weight_tying=bool(config.get("ensure_weight_tying")),
        init_lora_weights=config.get("init_lora_weights", True),
        trainable_token_indices=token_indices(config.get("trainable_token_indices"), where),
        target_parameters=_names(config.get("target_parameters"), where),
        invocation_tokens=_invocation_tokens(config.get("alora_invocation_tokens"), where),
    )


def refuse_activated(settings: LoraSettings, where: str) -> None:
    """Refuse to merge an activated LoRA; it can be exported.

    Raises:
        PackagingError: ``adapter_unsupported``.
    """
    if settings.invocation_tokens:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{where}: alora_invocation_tokens is set; an activated LoRA applies only after its invocation tokens, and "
            "merged weights would apply it to every token",
            remedy="Export it with the template `lora_only`; llama.cpp's server activates it by the same tokens.",
            fields={"feature": "alora_invocation_tokens"},
        )


def _refuse_unmergeable(config: Mapping[str, Any], where: str) -> None:
    for key, (reason, remedy) in _UNMERGEABLE.items():
        if config.get(key):
            message = f"{where}: {key} is set; {reason}"
            raise PackagingError(ErrorCode.ADAPTER_UNSUPPORTED, message, remedy=remedy, fields={"feature": key})
    refuse_unknown(config, frozenset(), where)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_ALTERS_BASE):
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{where}: init_lora_weights is {init!r}, which replaced the base weights when training began",
            remedy="Save the adapter with `save_pretrained(..., path_initial_model_for_weight_conversion=...)`, "
            "which turns it into a plain LoRA for the original base.",
            fields={"feature": f"init_lora_weights={init}"},
        )


def refuse_unknown(config: Mapping[str, Any], of_the_method: Container[str], where: str) -> None:
    """Refuse a setting that is switched on and that nobody here has heard of, or that is known to change the tensors.

    Args:
        config: ``adapter_config.json``.
        of_the_method: Settings of a method beside those that are known of LoRA.
        where: Named in the message.

    Raises:
        PackagingError: ``adapter_unsupported``, naming the setting.
    """
    for key, value in config.items():
        if not value or key in _KNOWN or key in of_the_method:
            continue
        known = TRAINER_KEYS.get(key)
        if known is not None and not known.allows(value):
            raise PackagingError(
                ErrorCode.ADAPTER_UNSUPPORTED,
                f"{where}: {key} of {known.trainer} is set, which {known.does}",
                remedy="Merge the adapter with the trainer itself and package the result with `quantize_base`.",
                fields={"feature": key},
            )
        if known is None and not _is_peft_default(config, key):
            raise PackagingError(
                ErrorCode.ADAPTER_UNSUPPORTED,
                f"{where}: the setting {key!r} is not known here; it may change what the adapter's tensors mean",
                remedy="Remove it from adapter_config.json if it has no effect on merging, or merge with PEFT first.",
                fields={"feature": key},
            )


def _is_peft_default(config: Mapping[str, Any], key: str) -> bool:
    """Whether a setting has the value that the installed PEFT gives it by itself."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    of_method = PEFT_TYPE_TO_CONFIG_MAPPING.get(str(config.get("peft_type", "LORA")).upper())
    defaults = {setting.name: setting.default for setting in fields(of_method)} if of_method is not None else {}
    return key in defaults and bool(defaults[key] == config[key])


_LARGEST = 1e9
"""Beyond every rank and every scaling that a trainer writes."""


def _number(config: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{where}: {key} is {value!r}, not a number")
    if not abs(value) < _LARGEST:
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{where}: {key} is {value!r}, which is not below {_LARGEST:g}")
    return value


def _patterns(config: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{where}: {key} is not a map of patterns to numbers")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"{where}: {key} has the bad pattern {pattern!r}"
            raise PackagingError(ErrorCode.ADAPTER_INVALID, message) from error
    return {pattern: _number(value, pattern, 0, f"{where}: {key}") for pattern in value}


def _names(value: Any, where: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{where}: target_parameters is not a list of names")
    return frozenset(value)


def _invocation_tokens(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise PackagingError(ErrorCode.ADAPTER_INVALID, f"{where}: alora_invocation_tokens is not a list of token ids")
    return tuple(value)


def token_indices(value: Any, where: str) -> dict[str, list[int]]:
    """Token ids by ending of the embedding's path; the empty ending is any embedding's.

    Raises:
        PackagingError: ``adapter_invalid``.
    """
    if value is None:
        return {}
    by_name = value if isinstance(value, dict) else {"": value}
    for indices in by_name.values():
        if not isinstance(indices, list) or not all(type(index) is int and index >= 0 for index in indices):
            message = f"{where}: trainable_token_indices are not lists of token ids"
            raise PackagingError(ErrorCode.ADAPTER_INVALID, message)
    return by_name
