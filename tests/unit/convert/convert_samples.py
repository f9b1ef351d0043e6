"""Small models of many architectures with tokenizers, and what upstream's own converter makes of them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.field.vocabularies import known_or
from tests.tiny import tiny_tokenizer
from worker.models.convert.repairs import config_repairs
from worker.models.convert.upstream import load_upstream
from worker.models.gguf.reader import open_gguf

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

BPE_TOKENIZER = Path(__file__).parent / "data" / "bpe_tokenizer.json"
BPE_TOKENS, SPM_TOKENS = 49152, 400
"""The BPE tokenizer is SmolLM's (Apache-2.0) cut down to what upstream's recognition needs, at the original ids."""

_COMMON = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_BPE = {**_COMMON, "vocab_size": BPE_TOKENS}
_SPM = {**_COMMON, "vocab_size": SPM_TOKENS}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA = {
    **_BPE, **_MOE, "num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SPM, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", _SPM),
    "mixtral": ("MixtralConfig", {**_SPM, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", _SPM),
    "qwen3": ("Qwen3Config", {**_SPM, "head_dim": 8}),
    "qwen3-moe": ("Qwen3MoeConfig", {**_BPE, **_MOE, "head_dim": 8, "num_experts": 4, "norm_topk_prob": True}),
    "gemma2": ("Gemma2Config", {**_SPM, "head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {**_SPM, "head_dim": 8}),
    "phi3": ("Phi3Config", _SPM),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": BPE_TOKENS, "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "falcon": ("FalconConfig", {**_BPE, "multi_query": True, "new_decoder_architecture": False}),
    "glm4": ("Glm4Config", {**_BPE, "head_dim": 8}),
    "deepseek-v2": ("DeepseekV2Config", {**_MLA, "q_lora_rank": None}),
    "deepseek-v3": ("DeepseekV3Config", {**_MLA, "q_lora_rank": 24, "n_group": 2, "topk_group": 1}),
    "olmo2": ("Olmo2Config", _BPE),
    "granite": ("GraniteConfig", _SPM),
    "command-r": ("CohereConfig", _BPE),
    "starcoder2": ("Starcoder2Config", _BPE),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": SPM_TOKENS}),
}  # fmt: skip

# what upstream's converter gives up on as transformers saves it: it asks for MTP layers, which are not saved
WITHOUT_MTP: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {**_BPE, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "qwen3.5-moe": (
        "Qwen3_5MoeTextConfig",
        {**_BPE, **_MOE, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
         "linear_key_head_dim": 8, "linear_value_head_dim": 4, "num_experts": 4,
         "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {**_BPE, **_MOE, "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
         "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"]},
    ),
}  # fmt: skip

# families whose checkpoints have prediction layers that transformers does not save; ``draft_samples`` adds them
PREDICTING: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4-moe": (
        "Glm4MoeConfig",
        {**_BPE, **_MOE, "head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
         "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1},
    ),
    "glm4-moe-lite": (
        "Glm4MoeLiteConfig",
        {**_MLA, "q_lora_rank": 24, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1,
         "mlp_layer_types": ["dense", "sparse"]},
    ),
    "exaone-moe": (
        "ExaoneMoeConfig",
        {**_BPE, **_MOE, "head_dim": 8, "num_experts": 4, "num_shared_experts": 1, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
         "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
    ),
    "mimo2": (
        "MiMoV2FlashConfig",
        {**_BPE, **_MOE, "head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4},
    ),
}  # fmt: skip

# upstream's converter takes its experts as they are where they are MXFP4
IN_MXFP4: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": ("GptOssConfig", {**_BPE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def save_model(name: str, directory: Path, *, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A model of random weights with its tokenizer. Norms and biases are spread, so that a mix-up shows."""
    config_class, settings = (ARCHITECTURES | WITHOUT_MTP | PREDICTING | IN_MXFP4)[name]
    torch.manual_seed(5)
    config = getattr(transformers, config_class)(**{**settings, **changes})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.to(dtype).save_pretrained(directory)
    save_tokenizer(directory, config.vocab_size)
    return directory


def save_vision_model(directory: Path) -> Path:
    """A Gemma 3 of random weights with a vision tower."""
    text = transformers.Gemma3TextConfig(**ARCHITECTURES["gemma3"][1]).to_dict()
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(directory)
    save_tokenizer(directory, SPM_TOKENS)
    return directory


def save_tokenizer(directory: Path, tokens: int) -> None:
    """The sentencepiece tokenizer for small vocabularies, the BPE one for large."""
    if tokens < 1000:
        tiny_tokenizer(directory)
        return
    description = json.loads(BPE_TOKENIZER.read_text(encoding="utf-8"))
    # GLM-4's converter asks for these tokens
    for number, text in enumerate(("<|user|>", "[gMASK]", "<|observation|>")):
        description["added_tokens"].append({**description["added_tokens"][0], "id": 49000 + number, "content": text})
    (directory / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def save_adapter(base: Path, directory: Path, **settings: Any) -> Path:
    """A LoRA adapter with random factors."""
    torch.manual_seed(9)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.05)
        model.save_pretrained(directory)
    return directory


def save_resized_adapter(base: Path, directory: Path, rows: int) -> Path:
    """A LoRA adapter of a model whose embedding and head were resized, which PEFT therefore saves whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        model.resize_token_embeddings(rows)
        tuned = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
        tuned.save_pretrained(directory, save_embedding_layers=True)
    return directory


def save_peft_merge(base: Path, adapter: Path, directory: Path) -> Path:
    """The merged model as PEFT and transformers write it, with the base's tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(directory)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory


_PRE_TOKENIZERS = {"BertPreTokenizer": "bert-bge", "Metaspace": "default"}


def teach_pre_tokenizers(monkeypatch: Any) -> None:
    """Have upstream recognise tokenizers trained here, as ``convert_hf_to_gguf_update.py`` would teach it.

    Upstream knows a pre-tokenizer by the ids that one vocabulary gives to one text, so no small vocabulary is known.
    """
    text_model = load_upstream().conversion.TextModel
    monkeypatch.setattr(text_model, "get_vocab_base_pre", known_or(text_model.get_vocab_base_pre, _taught))


def _taught(_: Any, tokenizer: Any) -> str:
    description = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    steps = description.get("pretokenizers", [description])
    patterns = [step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})]
    if not patterns:
        return _PRE_TOKENIZERS.get(str(description.get("type")), "gpt-2")
    return "llama-bpe" if "1,3" in patterns[0] else "qwen2"


def upstream_convert(
    model_dir: Path, out: Path, dtype: str = "GUESSED", name: str | None = "M", **options: Any
) -> Path:
    """Upstream's converter as it is, on a directory with weights."""
    upstream = load_upstream()
    hparams = upstream.conversion.ModelBase.load_hparams(model_dir, False)
    repairs = config_repairs(hparams)
    repaired = {"hparams": hparams | repairs} if repairs else {}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model_class = upstream.model_class(hparams["architectures"][0])
        for kept in ("module_paths", "dense_features_dims"):  # EmbeddingGemma's class keeps them from model to model
            getattr(model_class, kept, []).clear()
        model_class(model_dir, upstream.gguf.LlamaFileType[dtype], out, model_name=name, **repaired, **options).write()
    return out


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata as Python values, and tensors in torch's order of axes. Plain float types only."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with open_gguf(path) as file:
        metadata = {key: value.value for key, value in file.metadata.items() if value.count < 1000}
        tensors = {
            tensor.name: torch.frombuffer(bytearray(file.tensor_bytes(tensor)), dtype=dtypes[tensor.type.name]).reshape(
                tuple(reversed(tensor.shape))
            )
            for tensor in file.tensors
        }
    return metadata, tensors
