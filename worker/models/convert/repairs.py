"""``config.json`` as upstream's classes expect to read it, whoever wrote it.

Upstream reads ``config.json`` through transformers' classes. Version 5 of transformers drops keys that it knows under
other names, renames kinds of layers and moves what differs by layer into ``per_layer_config``, both when it reads a
config of the Hub and when it saves one; upstream's classes look for the names of the Hub. Two steps give them back:

1. what the file says and transformers dropped is put back from the file (:func:`completed`);
2. what transformers 5 itself wrote under its own names is said again under the Hub's (:func:`config_repairs`), by
   ``model_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.files import read_json
from worker.models.convert.layer_kinds import full_attention_interval
from worker.models.hardening import replaced

if TYPE_CHECKING:
    from worker.models.convert.upstream import Upstream

_Config = Mapping[str, Any]
_CONFIG = "config.json"
# transformers.configuration_utils._LEGACY_LAYER_TYPE_REMAP, the other way round
_HUB_LAYER_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}
# the letters of Nemotron-H's hybrid_override_pattern, by either name of a kind
_NEMOTRON_LETTERS = {
    "mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-", "moe": "E",
}  # fmt: skip
_NEMOTRON_EXPERT_KEYS = (
    "num_experts_per_tok", "n_routed_experts", "n_shared_experts", "n_group", "topk_group", "moe_intermediate_size",
    "moe_shared_expert_intermediate_size", "moe_latent_size", "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip


def _gemma4(config: _Config) -> dict[str, Any]:
    """``per_layer_config`` holds what the Hub's config calls ``global_head_dim`` and ``num_global_key_value_heads``."""
    named = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
    full = _of_kind(config, "full_attention")
    mended = {key: full.get(own) for key, own in named.items() if config.get(key) is None}
    mended = {key: value for key, value in mended.items() if value is not None}
    # left out where it equals the head size of the other layers
    if "global_head_dim" not in mended and config.get("global_head_dim") is None and "per_layer_config" in config:
        mended["global_head_dim"] = config["head_dim"]
    return mended


def _leading_dense(config: _Config) -> dict[str, Any]:
    """How many layers come before the first with experts, which transformers 5 says by ``mlp_layer_types`` alone."""
    kinds = config.get("mlp_layer_types")
    if config.get("first_k_dense_replace") is not None or not isinstance(kinds, list):
        return {}
    return {"first_k_dense_replace": next((at for at, kind in enumerate(kinds) if kind != "dense"), len(kinds))}


def _of_kind(config: _Config, kind: str) -> _Config:
    """What ``per_layer_config`` says of the first layer of a kind that it mentions."""
    kinds = config.get("layer_types") or []
    layers = config.get("per_layer_config") or {}
    return next((layers[at] for at in layers if int(at) < len(kinds) and kinds[int(at)] == kind), {})


def _rotary_part(config: _Config) -> float:
    return float((config.get("rope_parameters") or {}).get("partial_rotary_factor") or 1.0)


def _hybrid_kinds(config: _Config) -> dict[str, Any]:
    """Granite 4's kinds of layers by the Hub's names, which upstream compares with."""
    kinds = config.get("layer_types")
    return {"layer_types": [_HUB_LAYER_KINDS.get(kind, kind) for kind in kinds]} if kinds else {}


def _nemotron_h(config: _Config) -> dict[str, Any]:
    """The pattern of letters, the number of layers, and nothing of experts where no layer has any.

    transformers fills in the counts of experts for dense models too, and upstream takes them at their word.
    """
    kinds = config.get("layers_block_type") or config.get("layer_types")
    if config.get("hybrid_override_pattern") or not kinds or not set(kinds) <= set(_NEMOTRON_LETTERS):
        pattern = config.get("hybrid_override_pattern") or ""
    else:
        pattern = "".join(_NEMOTRON_LETTERS[kind] for kind in kinds)
    if not pattern:
        return {}
    absent = {} if "E" in pattern else dict.fromkeys(_NEMOTRON_EXPERT_KEYS, ABSENT)
    return {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern), **absent}


def _kimi_linear(config: _Config) -> dict[str, Any]:
    """``linear_attn_config``, whose layers count from 1."""
    kinds = config.get("layer_types")
    router = {"moe_router_activation_func": config.get("moe_router_activation_func") or "sigmoid"}
    if config.get("linear_attn_config") or not isinstance(kinds, list):
        return router | _leading_dense(config)
    linear = {
        "full_attn_layers": [at for at, kind in enumerate(kinds, start=1) if kind == "full_attention"],
        "kda_layers": [at for at, kind in enumerate(kinds, start=1) if kind != "full_attention"],
        "head_dim": config.get("linear_head_dim"),
        "num_heads": config.get("linear_num_heads"),
        "short_conv_kernel_size": config.get("linear_conv_kernel_dim"),
    }
    return router | {"linear_attn_config": linear} | _leading_dense(config)


def _mimo_v2(config: _Config) -> dict[str, Any]:
    """What the layers with a window have of their own, which transformers' class does not tell from the others'."""
    kinds = config.get("layer_types")
    if config.get("hybrid_layer_pattern") or not isinstance(kinds, list):
        return {}
    own = ("head_dim", "v_head_dim", "num_attention_heads")
    rope = config.get("rope_parameters") or {}
    part = (rope.get("full_attention") or rope).get("partial_rotary_factor", 1.0)
    groups = config.get("swa_num_key_value_heads") or 2 * int(config["num_key_value_heads"])  # twice, in its class
    return {
        **{f"swa_{key}": config.get(f"swa_{key}") or config[key] for key in own},
        "swa_num_key_value_heads": groups,
        "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in kinds],
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": config.get("rms_norm_eps", 1e-5),
        "rope_parameters": {**rope, "partial_rotary_factor": part},
    }


def _deepseek_v4(config: _Config) -> dict[str, Any]:
    """Ratios of compression by layer (0: none), and how many layers choose experts by the token itself."""
    kinds, feeds = config.get("layer_types"), config.get("mlp_layer_types")
    mended: dict[str, Any] = {}
    if "compress_ratios" not in config and isinstance(kinds, list):
        rates = config.get("compress_rates") or {}
        mended["compress_ratios"] = [int(rates.get(kind, 0)) for kind in kinds]
    if "num_hash_layers" not in config and isinstance(feeds, list):
        mended["num_hash_layers"] = feeds.count("hash_moe")
    compress = (config.get("rope_parameters") or {}).get("compress") or {}
    if compress.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        mended["rope_scaling"] = compress
    return mended


def _step3p5(config: _Config) -> dict[str, Any]:
    """The Hub's names of counts, and what differs by the kind of a layer written out layer by layer."""
    named = {
        "num_attention_groups": "num_key_value_heads", "moe_num_experts": "n_routed_experts",
        "moe_top_k": "num_experts_per_tok",
    }  # fmt: skip
    mended = {key: config[own] for key, own in named.items() if key not in config and own in config}
    kinds, feeds, rope = config.get("layer_types"), config.get("mlp_layer_types"), config.get("rope_parameters") or {}
    if isinstance(kinds, list) and "partial_rotary_factors" not in config:
        built_in = {"sliding_attention": 1.0, "full_attention": 0.5}
        # transformers rotates all of a layer that says nothing; where no kind of layer is told, its class has these
        parts = {
            kind: rope[kind].get("partial_rotary_factor", 1.0) if rope.get(kind) else built_in.get(kind, 1.0)
            for kind in kinds
        }
        if parts != {kind: built_in.get(kind) for kind in kinds}:
            raise PackagingError(
                ErrorCode.UNSUPPORTED_ARCHITECTURE,
                f"config.json: rope_parameters has partial_rotary_factor {parts}; llama.cpp rotates {built_in}",
                fields={"key": "rope_parameters"},
            )
        mended["partial_rotary_factors"] = [parts[kind] for kind in kinds]
    if isinstance(feeds, list) and "moe_layers_enum" not in config:
        mended["moe_layers_enum"] = ",".join(str(at) for at, kind in enumerate(feeds) if kind == "sparse")
    if "attention_other_setting" not in config and config.get("num_sliding_attention_heads"):
        mended["attention_other_setting"] = {"num_attention_heads": config["num_sliding_attention_heads"]}
    return mended


_NOMIC_LENGTH = 2048


def _nomic_bert(config: _Config) -> dict[str, Any]:
    """GPT-2's names, which the Hub's config has, and what NomicBertConfig takes for granted."""
    if "n_embd" in config:
        return {}
    named = {
        "n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers",
        "n_inner": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps",
        "n_positions": "max_position_embeddings",
    }  # fmt: skip
    mended = {key: config[own] for key, own in named.items() if own in config}
    if mended.get("n_positions") == _NOMIC_LENGTH:  # the length that was trained, beside which the Hub's says another
        mended |= {"n_positions": 8192, "max_trained_positions": _NOMIC_LENGTH}
    return mended | {
        "rotary_emb_base": (config.get("rope_parameters") or {}).get("rope_theta", 1000.0),
        "activation_function": "swiglu", "rotary_emb_fraction": 1.0, "rotary_emb_scale_base": None,
        **dict.fromkeys(
            ("causal", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "prenorm", "rotary_emb_interleaved"), False
        ),
    }  # fmt: skip


def _qwen3_asr(config: _Config) -> dict[str, Any]:
    """Sections of the rotary embedding, which llama.cpp asks for; sound has one position, so any sections do."""
    text = config.get("text_config") or {}
    rope = text.get("rope_parameters") or {}
    if not text or "mrope_section" in rope or "mrope_section" in (text.get("rope_scaling") or {}):
        return {}
    half = int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]) // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    return {"text_config": {**text, "rope_parameters": {**rope, "mrope_section": sections}}}


def _glm(config: _Config) -> dict[str, Any]:
    """What the makers' own config calls otherwise; upstream takes the width for the context where it finds neither."""
    named = {"seq_length": "max_position_embeddings", "layernorm_epsilon": "rms_norm_eps"}
    return {old: config[new] for old, new in named.items() if old not in config and new in config}


def _sigmoid_router(config: _Config) -> dict[str, Any]:
    return {"scoring_func": config.get("scoring_func") or "sigmoid"}


def _minimax_m2(config: _Config) -> dict[str, Any]:
    mended = _sigmoid_router(config)
    if "rotary_dim" not in config and "head_dim" in config:
        mended["rotary_dim"] = int(_rotary_part(config) * config["head_dim"])
    return mended


def _hunyuan_moe(config: _Config) -> dict[str, Any]:
    layers = int(config["num_hidden_layers"])
    said = {
        "moe_intermediate_size": config.get("moe_intermediate_size") or config["intermediate_size"],
        "moe_topk": config.get("moe_topk", 1),
        "num_shared_expert": config.get("num_shared_expert") or 1,
    }
    return {key: value if isinstance(value, list) else [value] * layers for key, value in said.items()}


ABSENT = object()
"""The value of a key that is to be taken away."""

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
    # ModernBertConfig knows norm_eps alone, where the Hub's configs say layer_norm_eps besides
    "modernbert": lambda config: (
        {"layer_norm_eps": config["norm_eps"]} if "norm_eps" in config and "layer_norm_eps" not in config else {}
    ),
    # where a trainer left it out: T5's decoder begins with the token for padding, as its class has it
    **dict.fromkeys(
        ("t5", "mt5", "umt5"),
        lambda config: (
            {"decoder_start_token_id": config.get("pad_token_id", 0)}
            if config.get("decoder_start_token_id") is None and config.get("is_encoder_decoder", True)
            else {}
        ),
    ),
    # Cohere2Config and MiniMaxM2Config keep the part of a head that turns in rope_parameters alone
    "cohere2": lambda config: {"rotary_pct": _rotary_part(config)} if "rotary_pct" not in config else {},
    "glm": _glm,
    "glm4_moe_lite": lambda config: {**_leading_dense(config), **_sigmoid_router(config)},
    # without it llama.cpp takes such models for the older ones, whose router has a softmax
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm_moe_dsa"), _sigmoid_router),
    "minimax_m2": _minimax_m2,
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), full_attention_interval),
    # routers that know no other function, which their classes therefore do not keep
    "exaone_moe": _sigmoid_router,
    # the Hub's config calls it noaux_tc, which upstream's class no longer knows
    "dots1": lambda _: {"scoring_func": "sigmoid"},
    # one value by layer in the Hub's configs, where HunYuanMoEV1Config has one for all; one shared expert always
    "hunyuan_v1_moe": _hunyuan_moe,
    "kimi_linear": _kimi_linear,
    "mimo_v2_flash": _mimo_v2,
    "nomic_bert": _nomic_bert,
    "deepseek_v4": _deepseek_v4,
    "step3p5": _step3p5,
    "qwen3_asr": _qwen3_asr,
    "gemma4_text": _gemma4,
    "gemma4_unified_text": lambda config: {"moe_intermediate_size": None} | _gemma4(config),
    "granitemoehybrid": _hybrid_kinds,
    "nemotron_h": _nemotron_h,
}


def config_repairs(config: _Config) -> dict[str, Any]:
    """Keys to set in a config as read (:data:`ABSENT`: to take away); empty for nearly every model."""
    repair = _REPAIRS.get(str(config.get("model_type")))
    return repair(config) if repair is not None else {}


def completed(parsed: dict[str, Any], raw: _Config) -> dict[str, Any]:
    """A config as upstream parsed it, with what the file says besides and with repairs, at every depth; in place.

    Lists of names (kinds of layers) are the file's: transformers renames and cuts them.
    """
    _fill(parsed, raw)
    return repaired(parsed)


def _fill(parsed: dict[str, Any], raw: _Config) -> None:
    own = {str(key): key for key in parsed}  # labels of a classifier go by numbers in Python, by text in JSON
    for written, said in raw.items():
        key = own.get(written, written)
        known = parsed.get(key)
        if isinstance(known, dict) and isinstance(said, Mapping):
            _fill(known, said)
        elif (known is None and said is not None) or (known != said and _is_names(said)):
            parsed[key] = said


def repaired(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its repairs, at every depth; in place. Some classes of upstream read the file themselves."""
    for key, value in config_repairs(config).items():
        if value is ABSENT:
            config.pop(key, None)
        else:
            config[key] = value
    for part in config.values():
        if isinstance(part, dict):
            repaired(part)
    return config


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


@contextmanager
def completed_configs(upstream: Upstream) -> Iterator[None]:
    """Have everything of upstream that reads a config, its classes included, read it completed."""
    original = upstream.conversion.ModelBase.load_hparams

    def load_hparams(directory: Path, is_mistral_format: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
        parsed: dict[str, Any] = original(directory, is_mistral_format, *args, **kwargs)
        if is_mistral_format or not (Path(directory) / _CONFIG).is_file():
            return parsed
        return completed(parsed, read_json(Path(directory) / _CONFIG, ErrorCode.BASE_MODEL_INVALID))

    with replaced(upstream.conversion.ModelBase, "load_hparams", staticmethod(load_hparams)):
        yield
