"""Sensitivities against autograd over whole models: nothing is compared with itself."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from config.roots import Roots
from tests.tiny import tiny_tokenizer
from tests.unit.imatrix import imatrix_models
from worker.models.checkpoint import open_base_model
from worker.models.convert.upstream import load_upstream
from worker.models.imatrix.calibration import Calibration
from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix
from worker.models.imatrix.tokens import tokenize_chunks
from worker.models.mixture.names import may_be_quantized
from worker.models.sensitivity.compute import ComputedSensitivity, compute_sensitivity
from worker.models.sensitivity.gguf_form import read_sensitivity, write_sensitivity
from worker.models.sensitivity.tap import on_gradient
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested

VOCABULARY, CHUNK_TOKENS = 400, 24
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS: dict[str, object] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "gemma2: tied, scaled embedding, capped logits": ("gemma2", {"query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3: its conversion reads the tokenizer": (
        "gemma3_text",
        {
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
        },
    ),
    "phi3: fused projections": ("phi3", {}),
    "qwen3_moe: experts in one tensor": ("qwen3_moe", EXPERTS),
    "gpt2: transposed projections": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
}
TEXT = (
    "The miller counted the sacks twice, once by hand and once by ear; def area(w, h): return w * h; 7 * 8 = 56. " * 6
)


def make(directory: Path, model_type: str, settings: dict[str, object]) -> Path:
    torch.manual_seed(1)
    sizes = {key: SIZES[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    sizes = sizes if model_type == "gpt2" else SIZES
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **settings)).float()
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.dim() > 1 else 1  # random models of the usual scale predict next to nothing
    model.save_pretrained(directory)
    tiny_tokenizer(directory)
    return directory


def compute(directory: Path, work: Path, setting: WorkSetting | None = None, **given: object) -> ComputedSensitivity:
    return compute_sensitivity(
        open_base_model(directory),
        None,
        CalibrationChunks(Calibration("test", TEXT), directory, 3, CHUNK_TOKENS),
        work_dir=work,
        device="cpu",
        setting=setting or WorkSetting(roots=Roots.anywhere()),
        **given,  # type: ignore[arg-type]
    )


@pytest.fixture(autouse=True)
def _any_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_upstream().conversion.TextModel, "get_vocab_base_pre", lambda _self, _tokenizer: "gpt-2")


def whole_model(directory: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, str]:
    """Squared gradients at the outputs of linear modules, by module; at the embedding; token counts; digest of tokens.

    The labels follow the documented rule: inverse of the distribution at uniform numbers of one generator a chunk.
    """
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    whole = tokenize_chunks(TEXT, directory, CHUNK_TOKENS, None)
    tokens = whole[[index * len(whole) // 3 for index in range(3)]]
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
    embedded = torch.zeros(VOCABULARY, model.get_input_embeddings().weight.shape[1])
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head":

            def forward(_module: object, _inputs: object, output: torch.Tensor, name: str = name) -> None:
                def add(gradient: torch.Tensor) -> None:
                    sums[name] = sums[name] + gradient.reshape(-1, gradient.shape[-1]).square().sum(0)

                on_gradient(output, add)

            module.register_forward_hook(forward)
    for number, ids in enumerate(tokens):
        inputs = model.get_input_embeddings()(ids[None]).detach().requires_grad_()
        logits = model(inputs_embeds=inputs).logits
        chances = logits.softmax(-1).detach()
        drawn = torch.rand(chances.shape[:-1], generator=torch.Generator().manual_seed(number))
        labels = torch.searchsorted(chances.cumsum(-1), drawn[..., None])[..., 0]
        torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert inputs.grad is not None
        scale = getattr(model.get_input_embeddings(), "embed_scale", torch.tensor(1.0))
        rows = torch.zeros_like(embedded)
        for place, token in enumerate(ids.tolist()):
            rows[token] += inputs.grad[0, place] * scale
        embedded = embedded + rows.square()
        sums["lm_head"] = sums["lm_head"] + (chances * (1 - chances) * _slope(model, logits.detach())).sum((0, 1))
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    return dict(sums), embedded, torch.bincount(tokens.flatten(), minlength=VOCABULARY), digest


def _slope(model: object, logits: torch.Tensor) -> torch.Tensor:
    """Squared derivative of what is done to the head's outputs."""
    cap = getattr(model.config, "final_logit_softcapping", None)  # type: ignore[attr-defined]
    return torch.ones(()) if cap is None else (1 - (logits / cap).square()).square()


def unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection of llama in Hugging Face's order: the file interleaves halves of each head."""
    return values.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_autograd_over_the_whole_model(tmp_path: Path, name: str) -> None:
    directory = make(tmp_path / "model", *ARCHITECTURES[name])
    computed = compute(directory, tmp_path / "work")
    entries = computed.sensitivity.entries
    sums, embedded, counts, digest = whole_model(directory)
    tokens = computed.sensitivity.tokens

    assert (computed.forward_only, computed.left_out) == ("", ())
    assert computed.sensitivity.text_sha256 == digest
    table = entries["token_embd.weight"]
    assert table.out_grad2 is not None
    np.testing.assert_allclose(table.out_grad2[0], embedded.sum(1) / tokens, rtol=1e-3)
    np.testing.assert_allclose(table.mean_inputs()[0], embedded.sum(0) / embedded.sum(), rtol=1e-3)
    assert (table.out_grad2[0] > 0).sum() == (counts > 0).sum()
    np.testing.assert_allclose(entries["output.weight"].out_grad2[0] * tokens, sums["lm_head"], rtol=1e-3)  # type: ignore[index]

    layers = {module.split(".")[-3] for module in sums if "layers" in module or ".h." in module} - {"layers", "h"}
    for layer in layers & {"0", "1", "2"}:
        parts = {
            "attn_output": ("self_attn.o_proj", "attn.c_proj"),
            "ffn_down": ("mlp.down_proj", "mlp.c_proj"),
            "attn_q": ("self_attn.q_proj",),
            "attn_qkv": ("self_attn.qkv_proj", "attn.c_attn"),
            "attn_v": ("self_attn.v_proj",),
        }
        seen = 0
        for gguf, modules in parts.items():
            found = [sums[m] for m in sums if m.endswith(tuple(f".{layer}.{module}" for module in modules))]
            entry = entries.get(f"blk.{layer}.{gguf}.weight")
            if not found or entry is None:
                continue
            assert entry.out_grad2 is not None
            own = entry.out_grad2[0] * tokens
            own = unpermuted(own, 4) if gguf == "attn_q" and name == "llama" else own
            np.testing.assert_allclose(own, found[0], rtol=2e-3, atol=1e-9, err_msg=f"{layer} {gguf}")
            seen += 1
        assert seen >= 2


def test_every_expert_has_gradients_of_its_own(tmp_path: Path) -> None:
    directory = make(tmp_path / "model", *ARCHITECTURES["qwen3_moe: experts in one tensor"])
    entries = compute(directory, tmp_path / "work").sensitivity.entries
    for part, rows in (("gate", 24), ("up", 24), ("down", 32)):
        entry = entries[f"blk.1.ffn_{part}_exps.weight"]
        assert entry.out_grad2 is not None
        assert entry.out_grad2.shape == (4, rows)
        reached = entry.inputs.counts > 0
        assert (entry.out_grad2.sum(1) > 0).tolist() == reached.tolist()


@pytest.mark.parametrize("name", sorted(imatrix_models.ARCHITECTURES.keys() - {"t5-encoder-decoder"}))
def test_every_quantized_weight_has_inputs_and_gradients_of_its_shape(tmp_path: Path, name: str) -> None:
    directory = imatrix_models.save_model(name, tmp_path / "model")
    computed = compute(directory, tmp_path / "work")
    entries = computed.sensitivity.entries
    assert (computed.forward_only, computed.left_out) == ("", ())
    for gguf_name, shape in imatrix_models.converted_shapes(directory).items():
        if not may_be_quantized("", gguf_name, shape[::-1]) or ".vision" in gguf_name or gguf_name.startswith("v."):
            continue
        entry, matrices = entries[gguf_name], shape[0] if len(shape) == 3 else 1
        assert entry.inputs.in_sum2.shape == (matrices, shape[-1])
        assert entry.out_grad2 is not None
        assert entry.out_grad2.shape == (matrices, shape[-2])
        assert entry.out_grad2.sum() > 0
    assert "output.weight" in entries


class StopAfter:
    """Asks to stop after some steps, and counts them."""

    def __init__(self, steps: int) -> None:
        self.left, self.seen = steps, 0

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0

    def setting(self) -> WorkSetting:
        def count(_progress: WorkProgress) -> None:
            self.seen += 1

        return WorkSetting(roots=Roots.anywhere(), report=count, should_stop=self)


def same(one: ComputedSensitivity, other: ComputedSensitivity) -> bool:
    left, right = one.sensitivity.entries, other.sensitivity.entries
    return left.keys() == right.keys() and all(
        np.array_equal(left[name].out_grad2, right[name].out_grad2)  # type: ignore[arg-type]
        and np.array_equal(left[name].inputs.in_sum2, right[name].inputs.in_sum2)
        and np.array_equal(left[name].inputs.counts, right[name].inputs.counts)
        for name in left
    )


def test_it_goes_on_where_it_was_stopped_to_the_same_bits(tmp_path: Path) -> None:
    directory = make(tmp_path / "model", *ARCHITECTURES["gemma2: tied, scaled embedding, capped logits"])
    whole = compute(directory, tmp_path / "whole")
    attempts = 0
    while True:
        try:
            resumed = compute(directory, tmp_path / "work", StopAfter(4 * attempts).setting())
            break
        except StopRequested:
            attempts += 1
            assert attempts < 20
    assert attempts >= 4  # 15 steps forward and 12 back, and what is taken over is asked about too
    assert same(resumed, whole)
    assert not (tmp_path / "work").exists()


def test_the_matrix_is_that_of_imatrix_and_a_given_one_is_kept(tmp_path: Path) -> None:
    directory = make(tmp_path / "model", *ARCHITECTURES["phi3: fused projections"])
    computed = compute(directory, tmp_path / "work").sensitivity
    text = CalibrationChunks(Calibration("test", TEXT), directory, 5, CHUNK_TOKENS)
    matrix = compute_imatrix(open_base_model(directory), None, text, device="cpu").sums
    assert computed.matrix().entries.keys() == matrix.entries.keys()
    given = compute(directory, tmp_path / "work", matrix=matrix).sensitivity
    for name, inputs in matrix.entries.items():
        assert given.entries[name].inputs is inputs
        np.testing.assert_array_equal(given.entries[name].out_grad2, computed.entries[name].out_grad2)


def test_a_model_that_cannot_go_backward_has_its_inputs(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    torch.manual_seed(0)
    T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    ).save_pretrained(directory)
    tiny_tokenizer(directory)
    computed = compute(directory, tmp_path / "work")
    assert "T5ForConditionalGeneration" in computed.forward_only  # an encoder-decoder says nothing of plain text
    assert not computed.sensitivity.has_gradients
    assert computed.sensitivity.entries


def test_the_file_gives_the_same_back(tmp_path: Path) -> None:
    directory = make(tmp_path / "model", *ARCHITECTURES["qwen3_moe: experts in one tensor"])
    computed = compute(directory, tmp_path / "work")
    write_sensitivity(tmp_path / "sensitivity.gguf", computed.sensitivity)
    read = read_sensitivity(tmp_path / "sensitivity.gguf")
    assert same(ComputedSensitivity(read, "cpu", ()), computed)
    kept = [(s.dataset, s.text_sha256, s.tokens, s.chunk_tokens, s.model, s.seed) for s in (read, computed.sensitivity)]
    assert kept[0] == kept[1]
