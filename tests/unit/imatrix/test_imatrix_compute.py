"""Statistics of whole models: against hooks, against llama-imatrix's own output, in both ways of running."""

import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.tiny import tiny_checkpoint
from tests.unit.imatrix.imatrix_models import ARCHITECTURES, DATA, TEXT, VOCABULARY, converted_shapes, save
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.imatrix.calibration import Calibration
from worker.models.imatrix.compute import CalibrationChunks, ComputedImatrix, compute_imatrix
from worker.models.imatrix.load import read_imatrix
from worker.models.imatrix.tokens import tokenize_chunks
from worker.models.mixture.names import may_be_quantized
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested

CHUNKS, CHUNK_TOKENS = 10, 32


def compute(directory: Path, **changes: Any) -> ComputedImatrix:
    overlay = changes.pop("overlay", None)
    text = Calibration("test", changes.pop("text", TEXT))
    count, tokens = changes.pop("chunks", CHUNKS), changes.pop("chunk_tokens", CHUNK_TOKENS)
    chunks = CalibrationChunks(text, changes.pop("tokenizer_dir", directory), count, tokens)
    return compute_imatrix(open_base_model(directory), overlay, chunks, **{"device": "cpu", **changes})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_quantized_weight_of_a_block_gets_an_entry_of_its_shape(
    name: str, computed: Callable[..., ComputedImatrix], model_dir: Callable[[str], Path]
) -> None:
    entries = computed(name).sums.entries
    shapes = converted_shapes(model_dir(name))
    expected = {
        gguf_name: (shape[0] if len(shape) == 3 else 1, shape[-1])
        for gguf_name, shape in shapes.items()
        if "blk." in gguf_name and may_be_quantized("", gguf_name, shape[::-1])
    }
    assert expected.items() <= {gguf_name: entry.in_sum2.shape for gguf_name, entry in entries.items()}.items()
    assert entries.keys() <= shapes.keys()
    assert computed(name).left_out == ()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_layer_at_a_time_gives_the_bits_of_the_whole_model(
    name: str, computed: Callable[..., ComputedImatrix]
) -> None:
    layered, whole = computed(name).sums, computed(name, layered=False).sums
    assert layered.entries.keys() == whole.entries.keys()
    for gguf_name, entry in whole.entries.items():
        assert np.array_equal(layered.entries[gguf_name].in_sum2, entry.in_sum2), gguf_name
        assert np.array_equal(layered.entries[gguf_name].counts, entry.counts), gguf_name


def test_dense_statistics_are_those_that_hooks_on_the_linear_modules_see(
    computed: Callable[..., ComputedImatrix], model_dir: Callable[[str], Path]
) -> None:
    directory = model_dir("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    seen = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _module, inputs, name=name: seen[name].append(inputs[0]))
    with torch.no_grad():
        model(tokenize_chunks(TEXT, directory, CHUNK_TOKENS, CHUNKS))
    entries = computed("llama").sums.entries
    names = {"attn_q": "self_attn.q_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.up_proj"}
    for gguf_part, module_part in {**names, "ffn_down": "mlp.down_proj"}.items():
        for layer in (0, 1):
            (inputs,) = seen[f"model.layers.{layer}.{module_part}"]
            entry = entries[f"blk.{layer}.{gguf_part}.weight"]
            expected = inputs.reshape(-1, inputs.shape[-1]).double().square().sum(0)
            np.testing.assert_allclose(entry.in_sum2[0], expected.numpy(), rtol=2e-5)
            assert entry.counts.tolist() == [CHUNKS * CHUNK_TOKENS]


def test_expert_statistics_are_those_of_the_tokens_that_the_router_sent(
    computed: Callable[..., ComputedImatrix], model_dir: Callable[[str], Path]
) -> None:
    directory = model_dir("mixtral")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    calls = []
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_pre_hook(lambda _module, inputs: calls.append(inputs))
    with torch.no_grad():
        model(tokenize_chunks(TEXT, directory, CHUNK_TOKENS, CHUNKS))
    ((hidden, chosen, _weights),) = calls
    gate_up = experts.gate_up_proj.detach()
    entries = computed("mixtral").sums.entries
    for expert in range(4):
        rows = hidden[(chosen == expert).any(dim=-1)]
        gate, up = (rows @ gate_up[expert].T).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        for gguf_part, inputs in (("gate", rows), ("up", rows), ("down", inner)):
            entry = entries[f"blk.1.ffn_{gguf_part}_exps.weight"]
            assert entry.counts[expert] == len(rows)
            np.testing.assert_allclose(entry.in_sum2[expert], inputs.double().square().sum(0), rtol=2e-4)


def test_llama_imatrix_counts_the_same_and_sums_nearly_the_same(model_dir: Callable[[str], Path]) -> None:
    """``data/llama-imatrix.gguf`` is the reference tool's own output for this model and text (see imatrix_record)."""
    theirs = read_imatrix(DATA / "llama-imatrix.gguf")
    ours = compute(model_dir("recorded"), chunks=None).sums
    assert (ours.chunk_count, ours.chunk_tokens) == (theirs.chunk_count, theirs.chunk_tokens)
    assert ours.entries.keys() == theirs.entries.keys()
    for name, entry in theirs.entries.items():
        assert np.array_equal(ours.entries[name].counts, entry.counts), name
        # llama.cpp keeps keys and values in half precision, and with them everything after the first attention
        correlation = np.corrcoef(ours.entries[name].in_sum2.ravel(), entry.in_sum2.ravel())[0, 1]
        assert correlation > 0.9999, name
        np.testing.assert_allclose(ours.entries[name].in_sum2, entry.in_sum2, rtol=0.06, err_msg=name)
        # plain sums cancel, so they are held to the size of what is summed
        plain, bound = ours.entries[name].in_sum, np.sqrt(entry.in_sum2 * entry.counts[:, None])
        assert plain is not None, name
        assert entry.in_sum is not None, name
        assert float((np.abs(plain - entry.in_sum) / np.maximum(bound, 1e-6)).max()) < 0.03, name


def test_an_expert_that_no_token_reaches_has_count_zero_and_is_reported(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("recorded"), directory)  # three experts, each token goes to one
    weights = load_file(directory / "model.safetensors")
    router = torch.zeros(3, 32)
    router[0, 5], router[1, 5] = 9, -9  # one of the two is always above the third's zero
    weights["model.layers.0.block_sparse_moe.gate.weight"] = router
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    result = compute(directory)
    counts = result.sums.entries["blk.0.ffn_down_exps.weight"].counts
    assert counts[2] == 0
    assert counts[:2].min() > 0
    assert counts.sum() == CHUNKS * CHUNK_TOKENS
    assert result.unreached == dict.fromkeys([f"blk.0.ffn_{part}_exps.weight" for part in ("down", "gate", "up")], 1)


def test_with_an_overlay_the_merged_model_runs(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    base_dir = model_dir("llama")
    checkpoint = tiny_checkpoint(base_dir, tmp_path)
    base = open_base_model(base_dir)
    build_overlay(open_adapter(checkpoint), base, tmp_path / "overlay.safetensors", precision="base")
    overlay = Overlay.load(tmp_path / "overlay.safetensors")
    merged = tmp_path / "merged"
    shutil.copytree(base_dir, merged)
    weights = {name: overlay.apply(name, base.read_tensor(name)).clone() for name in base.tensors}
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    ours, expected = compute(base_dir, overlay=overlay), compute(merged)
    plain = compute(base_dir)
    for name, entry in expected.sums.entries.items():
        assert np.array_equal(ours.sums.entries[name].in_sum2, entry.in_sum2), name
    assert not np.array_equal(
        plain.sums.entries["blk.1.ffn_down.weight"].in_sum2, ours.sums.entries["blk.1.ffn_down.weight"].in_sum2
    )


def test_the_embedding_decides_the_vocabulary_where_config_json_disagrees(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    weights[embedding] = torch.cat([weights[embedding], torch.zeros(8, 32)])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert json.loads((directory / "config.json").read_text())["vocab_size"] == VOCABULARY
    assert compute(directory).token_count == CHUNKS * CHUNK_TOKENS


def test_chunks_are_no_longer_than_the_positions_that_the_model_knows(model_dir: Callable[[str], Path]) -> None:
    assert compute(model_dir("gpt2-transposed"), chunk_tokens=512, chunks=2).sums.chunk_tokens == 64


def note(seen: list[tuple[float, float]], at: WorkProgress) -> None:
    seen.append((at.done, at.total))


def test_progress_grows_to_the_number_of_chunks(model_dir: Callable[[str], Path]) -> None:
    for layered in (True, False):
        seen: list[Any] = []
        compute(
            model_dir("llama"),
            layered=layered,
            setting=WorkSetting(report=partial(note, seen)),
        )
        done = [each for each, _ in seen]
        assert done == sorted(done)
        assert seen[-1] == (CHUNKS, CHUNKS)


@pytest.mark.parametrize("layered", [True, False])
def test_a_stop_ends_the_computation_and_its_threads(layered: bool, model_dir: Callable[[str], Path]) -> None:
    before, seen = threading.active_count(), []
    with pytest.raises(StopRequested):
        compute(
            model_dir("llama"),
            layered=layered,
            setting=WorkSetting(report=lambda at: seen.append(at.done), should_stop=lambda: len(seen) >= 2),
        )
    assert len(seen) == 2
    assert threading.active_count() == before


def refusal(directory: Path, **changes: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        compute(directory, **changes)
    return caught.value


def edited(source: Path, directory: Path, **config: Any) -> Path:
    shutil.copytree(source, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return directory


def test_too_short_a_text_is_refused_with_both_numbers(model_dir: Callable[[str], Path]) -> None:
    error = refusal(model_dir("llama"), text="Seven times eight.")
    assert error.code is ErrorCode.CALIBRATION_TOO_SHORT
    assert error.fields["tokens_needed"] == CHUNK_TOKENS
    assert 0 < error.fields["tokens_found"] < CHUNK_TOKENS


def test_a_model_that_overflows_is_refused_with_the_weight_named(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.gate_proj.weight"][0, 0] = float("inf")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    error = refusal(directory)
    assert error.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert error.fields["tensor"] == "model.layers.1.mlp.down_proj.weight"


def test_weights_that_are_missing_or_of_another_shape_are_named(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(directory).message
    wider = edited(model_dir("llama"), tmp_path / "wider", intermediate_size=56)
    error = refusal(wider)
    assert error.code is ErrorCode.BASE_MODEL_INVALID
    assert "mlp" in error.message


def test_an_architecture_that_transformers_lacks_is_refused_without_running_code(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    directory = edited(
        model_dir("llama"),
        tmp_path / "model",
        architectures=["XverseForCausalLM"],
        model_type="xverse",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    (directory / "code.py").write_text(f"open({str(marker)!r}, 'w')")
    error = refusal(directory)
    assert error.code in (ErrorCode.UNSUPPORTED_ARCHITECTURE, ErrorCode.BASE_MODEL_INVALID)
    assert not marker.exists()


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    config = transformers.AutoConfig.from_pretrained(model_dir("llama"))
    config.vocab_size = 280
    directory = save(transformers.LlamaForCausalLM(config), tmp_path / "model")
    assert refusal(directory).code is ErrorCode.VOCABULARY_MISMATCH


def test_a_missing_tokenizer_is_refused(model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir("llama"), directory, ignore=shutil.ignore_patterns("tokenizer*"))
    assert refusal(directory).code is ErrorCode.TOKENIZER_UNSUPPORTED
