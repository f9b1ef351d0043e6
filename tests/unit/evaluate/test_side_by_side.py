"""Every model of a pass against transformers running the same weights whole: nothing is compared with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from config.roots import Roots
from tests.tiny import tiny_tokenizer
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.convert.upstream import load_upstream
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.setting import WorkSetting

VOCABULARY = 400
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2 with biases": ("qwen2", {}),
    "gemma2: norms plus one, capped logits": ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 16}),
    "phi3: fused projections": ("phi3", {}),
    "qwen3_moe: experts in one tensor": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
        },
    ),
    "llama4: ids follow the embedding": (
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 1,
        },
    ),
    "gpt2: transposed projections": (
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY},
    ),
}


def make(
    directory: Path, model_type: str, settings: dict[str, object], seed: int, vectors_of: Path | None = None
) -> Path:
    """A model with random weights; its vectors are another model's where one is given."""
    torch.manual_seed(seed)
    sizes = {"bos_token_id": 1, "eos_token_id": 2} if model_type == "gpt2" else SIZES
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **settings)).float()
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
        else:
            parameter.data *= 4  # random models of the usual scale predict next to nothing
    if vectors_of is not None:
        other = AutoModelForCausalLM.from_pretrained(vectors_of, dtype=torch.float32).state_dict()
        for name, tensor in model.state_dict().items():
            if tensor.dim() < 2:
                tensor.copy_(other[name])
    model.save_pretrained(directory)
    tiny_tokenizer(directory)
    return directory


def sequences() -> list[TokenSequence]:
    generator = np.random.default_rng(5)
    lengths = [40, 24, 40, 31]
    return [
        TokenSequence(part, tuple(int(t) for t in generator.integers(3, VOCABULARY, length)), first)
        for part, length, first in zip(["a", "b", "a", "b"], lengths, [21, 1, 21, 5], strict=True)
    ]


def expected_kld(reference: Path, other: Path) -> list[float]:
    """KL(reference || other) of every scored token, by transformers alone, in the order of the sequences."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (reference, other)]
    klds: list[float] = []
    for sequence in sequences():
        with torch.no_grad():
            p, q = (torch.log_softmax(m(torch.tensor([sequence.ids])).logits[0].double(), -1) for m in models)
        klds += ((p.exp() * (p - q)).sum(-1)[sequence.first_scored - 1 : -1]).tolist()
    return klds


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_is_judged_by_its_own_weights(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # upstream knows no small vocabulary; which pre-tokenizer the file names is not what is tried here
    monkeypatch.setattr(load_upstream().conversion.TextModel, "get_vocab_base_pre", lambda _self, _tokenizer: "gpt-2")
    model_type, settings = ARCHITECTURES[name]
    reference = make(tmp_path / "reference", model_type, settings, 1)
    other = make(tmp_path / "other", model_type, settings, 2, vectors_of=reference)
    for directory in (reference, other):
        convert(
            directory,
            directory / "model.gguf",
            gguf_dtype="f32",
            setting=WorkSetting(scratch_dir=tmp_path, roots=Roots.anywhere()),
        )

    files = [QuantizedFile(path.name, [path / "model.gguf"]) for path in (reference, other)]
    scores = evaluate_files(
        open_base_model(reference), None, files, sequences(), Budget(None), setting=WorkSetting(roots=Roots.anywhere())
    )

    assert scores.refused == {}
    assert scores.parts == ("a",) * 19 + ("b",) * 23 + ("a",) * 19 + ("b",) * 26
    assert np.abs(scores.others["reference"].kld).max() < 1e-6
    assert scores.others["reference"].same_top.all()
    wanted = np.array(expected_kld(reference, other))
    assert wanted.mean() > 0.05
    np.testing.assert_allclose(scores.others["other"].kld, wanted, rtol=1e-3, atol=1e-5)
