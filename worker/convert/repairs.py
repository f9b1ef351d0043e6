"""Keys of a config that upstream reads and transformers 5 drops, or fills with another meaning.

Upstream reads ``config.json`` through transformers' classes, so what those drop is gone for old checkpoints as well as
new ones; the keys are put back into what was read. Data only: ``model_type`` -> the keys to set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_Config = Mapping[str, Any]

_REPAIRS: Mapping[str, Callable[[_Config], dict[str, Any]]] = {
    # GPT2Config lost n_ctx, which always equalled n_positions
    "gpt2": lambda config: {"n_ctx": config.get("n_positions", 1024)} if "n_ctx" not in config else {},
    # FalconConfig fills num_kv_heads with the number of heads, also where the model has one (multi_query of Falcon-7B)
    "falcon": lambda config: (
        {"num_kv_heads": 1} if config.get("multi_query", True) and not config.get("new_decoder_architecture") else {}
    ),
    # GPTNeoXConfig moved rotary_pct into rope_parameters
    "gpt_neox": lambda config: (
        {"rotary_pct": (config.get("rope_parameters") or {}).get("partial_rotary_factor", 0.25)}
        if "rotary_pct" not in config
        else {}
    ),
}


def config_repairs(config: _Config) -> dict[str, Any]:
    """Keys to set in what upstream has read of a config; empty for nearly every model."""
    repair = _REPAIRS.get(str(config.get("model_type")))
    return repair(config) if repair is not None else {}
