"""Adapters as trainers leave them, through the real stages: read as they were trained, or refused by the cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.job import ArtifactKind, StageName
from api_client.request import PackagingRequest
from tests.harness import RecordingReporter, run_stages
from tests.tiny import HIDDEN, VOCABULARY, tiny_checkpoint, tiny_tokenizer
from worker.gguf.reader import open_gguf

EXPERTS, RANK = 4, 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Mixtral with a LoRA on its fused experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    directory = tmp_path_factory.mktemp("mixture")
    base = directory / "base"
    torch.manual_seed(5)
    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    tiny_tokenizer(base)
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    checkpoint = tiny_checkpoint(
        base, directory / "run", r=RANK, target_modules=["q_proj"], target_parameters=parameters
    )
    return base, checkpoint


def as_unsloth_wrote_it(checkpoint: Path, out: Path) -> Path:
    """The same adapter as Unsloth saved it before 2026.9.6: B's columns expert by expert."""
    out.mkdir(parents=True)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "MixtralForCausalLM", "parent_library": "x", "unsloth_fixed": True}
    (out / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(checkpoint / "adapter_model.safetensors")
    for name, value in weights.items():
        if "experts" in name and "lora_B" in name:
            by_expert = value.view(value.shape[0], RANK, EXPERTS).transpose(1, 2)
            weights[name] = by_expert.reshape(value.shape).contiguous()
    save_file(weights, out / "adapter_model.safetensors", {"format": "pt"})
    return out


def packaged(base: Path, checkpoint: Path, out: Path, reporter: RecordingReporter | None = None) -> dict[str, bytes]:
    """The bytes of every tensor of the unquantized file."""
    request = PackagingRequest(base_model=base, checkpoint=checkpoint, output_dir=out, template="merge")
    done = run_stages(request, out / "scratch", until=StageName.CONVERT, reporter=reporter)
    [file] = [one for one in done[StageName.CONVERT].artifacts if one.kind is ArtifactKind.GGUF]
    with open_gguf(Path(file.path)) as opened:
        return {tensor.name: opened.tensor_bytes(tensor).tobytes() for tensor in opened.tensors}


def test_an_adapter_of_unsloth_s_is_packaged_as_it_was_trained(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    base, checkpoint = mixture
    reporter = RecordingReporter()
    theirs = as_unsloth_wrote_it(checkpoint, tmp_path / "run" / "checkpoint-10")
    assert packaged(base, theirs, tmp_path / "theirs", reporter) == packaged(base, checkpoint, tmp_path / "ours")
    assert any("lora_B_layout" in line for _, line in reporter.lines)
