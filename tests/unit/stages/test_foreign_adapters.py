"""Adapters as trainers leave them, through the real stages: read as they were trained, or refused by the cause."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.quality import QualityReport, StepState, StepWord
from api_client.contract.request import PackagingRequest
from tests.harness import RecordingReporter, run_stages
from tests.tiny import HIDDEN, TEXT, VOCABULARY, tiny_checkpoint, tiny_tokenizer
from tests.unit.stages.conftest import TinyRun
from worker.models.adapters import Overlay
from worker.models.gguf.reader import open_gguf

EXPERTS, RANK = 4, 2
BPE_TOKENIZER = Path(__file__).parents[1] / "convert" / "data" / "bpe_tokenizer.json"


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


def test_peft_does_not_judge_what_it_would_misread(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    """The file is right, and not what the installed PEFT makes of the adapter; before, the job ended for that."""
    base, checkpoint = mixture
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 40))
    theirs = as_unsloth_wrote_it(checkpoint, tmp_path / "run" / "checkpoint-10")
    for name, adapter in (("ours", checkpoint), ("theirs", theirs)):
        wanted = {"text": tmp_path / "text.txt"}
        out = tmp_path / name
        request = PackagingRequest(
            base_model=base, checkpoint=adapter, output_dir=out, template="merge", evaluation=wanted
        )
        run_stages(request, tmp_path / f"scratch-{name}")
        report = QualityReport.model_validate_json((out / "quality.json").read_bytes())
        steps = {step.step: step for step in report.origin}
        if name == "ours":
            assert steps[StepWord.MERGE].state is steps[StepWord.LOGITS].state is StepState.SAME, steps
        else:
            assert steps[StepWord.MERGE].state is steps[StepWord.LOGITS].state is StepState.NOT_CHECKED, steps
            assert "they read experts in Unsloth's order otherwise than who wrote it" in steps[StepWord.MERGE].fact


NORM = "base_model.model.model.norm.weight"


def test_pickled_weights_beside_the_adapter_are_refused_by_prepare(tiny: TinyRun, tmp_path: Path) -> None:
    torch.save({NORM: torch.full((HIDDEN,), 3.0)}, tiny.checkpoint / "non_lora_state_dict.bin")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.WEIGHTS_PICKLED
    assert "non_lora_state_dict.bin" in refused.value.message
    assert "python -c" in (refused.value.remedy or "")


@pytest.mark.parametrize("sub", ["", "adapter_model"])
def test_safetensors_beside_the_adapter_end_up_in_the_file(tiny: TinyRun, tmp_path: Path, sub: str) -> None:
    tiny = replace(tiny, checkpoint=tiny.checkpoint.rename(tiny.run / "final"))
    if sub:
        (tiny.checkpoint / sub).mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tiny.checkpoint / name).rename(tiny.checkpoint / sub / name)
    save_file({NORM: torch.full((HIDDEN,), 3.0)}, tiny.checkpoint / "vit.safetensors")
    torch.save({"epoch": 1}, tiny.checkpoint / "training_args.bin")
    (tiny.checkpoint / "value_head.safetensors").write_bytes(b"x")
    reporter = RecordingReporter()
    tensors = packaged(tiny.base, tiny.checkpoint, tmp_path / "out", reporter)
    assert torch.frombuffer(bytearray(tensors["output_norm.weight"]), dtype=torch.float32).eq(3).all()
    lines = [line for _, line in reporter.lines]
    assert any("vit.safetensors of the checkpoint holds trained weights" in line for line in lines)
    assert any("value_head.safetensors" in line for level, line in reporter.lines if level == "warning")
    assert not any("training_args.bin" in line for line in lines)


def test_they_have_no_place_in_a_lora_file(tiny: TinyRun, tmp_path: Path) -> None:
    save_file({NORM: torch.full((HIDDEN,), 3.0)}, tiny.checkpoint / "vit.safetensors")
    with pytest.raises(PackagingError, match=r"modules_to_save or trained biases") as refused:
        run_stages(tiny.request(template="lora_only"), tmp_path / "scratch", until=StageName.EXPORT_LORA)
    assert refused.value.code is ErrorCode.ADAPTER_UNSUPPORTED


def test_a_classifier_s_head_is_named_with_what_to_do(tiny: TinyRun, tmp_path: Path) -> None:
    weights = load_file(tiny.checkpoint / "adapter_model.safetensors")
    weights["base_model.model.score.weight"] = torch.ones(3, HIDDEN)
    save_file(weights, tiny.checkpoint / "adapter_model.safetensors")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.MERGE)
    assert refused.value.code is ErrorCode.ADAPTER_MISMATCH
    assert "'score'" in refused.value.message
    assert "LlamaForCausalLM does not have" in refused.value.message
    assert "AutoModelForSequenceClassification" in (refused.value.remedy or "")


def test_experts_trained_one_by_one_are_merged_into_the_stack(tmp_path: Path) -> None:
    """As Unsloth trains 4-bit gpt-oss; every expert of both layers, and nothing else, changes."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,  # square experts, as the real ones are
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=49152,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    base, checkpoint = tmp_path / "base", tmp_path / "run" / "checkpoint-10"
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    shutil.copy(BPE_TOKENIZER, base / "tokenizer.json")  # the converter knows gpt-oss with such a one only
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    checkpoint.mkdir(parents=True)
    tensors, sizes = {}, {"gate_up_projs": 2 * HIDDEN, "down_projs": HIDDEN}
    for path in (f"model.layers.{n}.mlp.experts.{leaf}.{e}" for n in (0, 1) for leaf in sizes for e in range(EXPERTS)):
        out = sizes[path.split(".")[-2]]
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(RANK, HIDDEN)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out, RANK)
    save_file(tensors, checkpoint / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "auto_mapping": {"unsloth_fixed": True}}
    (checkpoint / "adapter_config.json").write_text(json.dumps(settings))
    request = PackagingRequest(base_model=base, checkpoint=checkpoint, output_dir=tmp_path / "out", template="merge")
    done = run_stages(request, tmp_path / "scratch", until=StageName.MERGE)
    overlay = Overlay.load(Path(done[StageName.MERGE].artifacts[0].path))
    stacks = {name for name in load_file(base / "model.safetensors") if name.endswith(("gate_up_proj", "down_proj"))}
    assert overlay.names() == stacks
    name = "model.layers.1.mlp.experts.down_proj"
    before = load_file(base / "model.safetensors")[name]
    for expert, now in enumerate(overlay.apply(name, before)):
        path = f"base_model.model.{name}s.{expert}"
        delta = 2 * tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]
        assert torch.equal(now, (before[expert].float() + delta.T).bfloat16())
