"""All templates through all stages, in this process: files, names, digests, and answers in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.request import Options
from tests.harness import RecordingReporter, run_stages
from tests.tiny import tiny_base, tiny_checkpoint
from tests.unit.stages.conftest import TinyRun
from worker.models.gguf.metadata import get_value
from worker.models.gguf.reader import open_gguf
from worker.stages.context import LeaseLost
from worker.storage.checksums import parse_checksums, sha256_file

RECORDS = {"manifest.json", "SHA256SUMS"}


def test_default_template_end_to_end(tiny: TinyRun, tmp_path: Path) -> None:
    results = run_stages(tiny.request(quant_types=["Q4_K_M", "Q8_0"]), tmp_path / "scratch")
    names = {"merged_model.gguf", "merged_model-Q4_K_M.gguf", "merged_model-Q8_0.gguf"}
    assert {path.name for path in tiny.output.iterdir()} == names | RECORDS
    sums = parse_checksums((tiny.output / "SHA256SUMS").read_text())
    assert sums == {name: sha256_file(tiny.output / name) for name in names}
    manifest = json.loads((tiny.output / "manifest.json").read_text())
    assert {entry["name"]: entry["sha256"] for entry in manifest["files"]} == sums
    assert manifest["inputs"]["adapter"]["name"] == "checkpoint-10"
    assert set(results[StageName.VERIFY].facts["loaded"]) == names
    predicted = results[StageName.PREPARE].facts["predicted_bytes"]
    quantized = {a.name: a.size_bytes for a in results[StageName.QUANTIZE].artifacts}
    # data to the byte; the header grows by a few keys
    assert all(0 <= size - predicted[name] < 1024 for name, size in quantized.items())


def test_other_templates_make_their_files(tiny: TinyRun, tmp_path: Path) -> None:
    for template, names in {
        "merge": {"merged_model.gguf"},
        "lora_only": {"checkpoint-10-lora.gguf"},
    }.items():
        output = tmp_path / template
        run_stages(tiny.request(template=template, output_dir=output), tmp_path / "scratch" / template)
        assert {path.name for path in output.iterdir()} == names | RECORDS
    output = tmp_path / "quantize_base"
    request = tiny.request(template="quantize_base", checkpoint=None, output_dir=output)
    run_stages(request, tmp_path / "scratch" / "quantize_base")
    assert {path.name for path in output.iterdir()} == {"base.gguf", "base-Q4_K_M.gguf"} | RECORDS


def test_an_activated_adapter_is_exported_with_its_tokens(tiny: TinyRun, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tiny.base, tmp_path / "run", alora_invocation_tokens=[5, 6])
    output = tmp_path / "out"
    run_stages(tiny.request(template="lora_only", checkpoint=checkpoint, output_dir=output), tmp_path / "scratch")
    with open_gguf(output / "checkpoint-10-lora.gguf") as file:
        assert get_value(file.metadata, "adapter.alora.invocation_tokens") == [5, 6]


def test_second_job_in_one_directory_keeps_the_first_ones_records(tiny: TinyRun, tmp_path: Path) -> None:
    run_stages(tiny.request(template="merge"), tmp_path / "one", job_id="job-one")
    run_stages(tiny.request(template="lora_only"), tmp_path / "two", job_id="job-two")
    assert json.loads((tiny.output / "manifest.json").read_text())["job_id"] == "job-two"
    assert json.loads((tiny.output / "manifest-job-one.json").read_text())["job_id"] == "job-one"
    sums = parse_checksums((tiny.output / "SHA256SUMS").read_text())
    assert set(sums) == {"merged_model.gguf", "checkpoint-10-lora.gguf"}


def test_publish_is_repeatable_and_a_zombie_publishes_nothing(tiny: TinyRun, tmp_path: Path) -> None:
    def taken_over() -> None:
        raise LeaseLost

    done = run_stages(tiny.request(), tmp_path / "scratch", until=StageName.VERIFY)
    with pytest.raises(LeaseLost):
        run_stages(tiny.request(), tmp_path / "scratch", done=done, reporter=RecordingReporter(on_confirm=taken_over))
    assert not list(tiny.output.glob("*")) if tiny.output.exists() else True
    for _ in range(2):
        run_stages(tiny.request(), tmp_path / "scratch", done=done)
    assert (tiny.output / "merged_model-Q4_K_M.gguf").is_file()


def test_quantize_again_makes_only_what_is_missing(tiny: TinyRun, tmp_path: Path) -> None:
    request = tiny.request(quant_types=["Q4_K_M", "Q8_0", "Q6_K"])
    done = run_stages(request, tmp_path / "scratch", until=StageName.CONVERT)
    run_stages(request, tmp_path / "scratch", until=StageName.QUANTIZE, done=done)
    (tmp_path / "scratch" / "merged_model-Q8_0.gguf").unlink()
    again = run_stages(request, tmp_path / "scratch", until=StageName.QUANTIZE, done=done)
    facts = again[StageName.QUANTIZE].facts
    assert (facts["made"], facts["taken_over"]) == (["Q8_0"], ["Q4_K_M", "Q6_K"])


def test_a_damaged_file_is_not_published(tiny: TinyRun, tmp_path: Path) -> None:
    done = run_stages(tiny.request(), tmp_path / "scratch", until=StageName.QUANTIZE)
    (artifact,) = (a for a in done[StageName.QUANTIZE].artifacts if a.kind is ArtifactKind.QUANTIZED)
    data = bytearray(Path(artifact.path).read_bytes())
    data[4] = 99  # a GGUF version that does not exist
    Path(artifact.path).write_bytes(data)
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", done=done)
    assert refused.value.code is ErrorCode.GGUF_INVALID
    assert not tiny.output.exists()


def test_a_type_that_needs_a_matrix_gets_one(tiny: TinyRun, tmp_path: Path) -> None:
    results = run_stages(tiny.request(quant_types=["IQ2_XS"], imatrix={"chunks": 2}), tmp_path / "scratch")
    assert results[StageName.IMATRIX].facts == {"computed": True}
    assert (tiny.output / "merged_model.imatrix.gguf").is_file()
    assert (tiny.output / "merged_model-IQ2_XS.gguf").is_file()


def test_files_above_the_limit_are_published_as_shards_that_load(tiny: TinyRun, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "wide", hidden_size=256, intermediate_size=1024)
    request = tiny.request(
        template="custom",
        options=Options(merge_lora=False, quantize=False),
        base_model=base,
        checkpoint=None,
        model_name="wide",
        split_max_size_bytes=1_000_000,
    )
    run_stages(request, tmp_path / "scratch")
    shards = sorted(path.name for path in tiny.output.glob("*.gguf"))
    assert len(shards) > 2
    assert shards[0] == f"wide-00001-of-{len(shards):05d}.gguf"
    assert set(parse_checksums((tiny.output / "SHA256SUMS").read_text())) == set(shards)


def test_companions_and_merged_checkpoint_on_request(tiny: TinyRun, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = tiny.checkpoint / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny.base), "owner/tiny-base"))
    run_stages(tiny.request(companions=True, save_merged=True), tmp_path / "scratch")
    card = (tiny.output / "README.md").read_text()
    assert "base_model: owner/tiny-base\n" in card
    assert "base_model_relation: finetune" in card
    assert "merged_model-Q4_K_M.gguf" in card
    modelfile = (tiny.output / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./merged_model-Q4_K_M.gguf\n")
    assert "ADAPTER" not in modelfile
    merged = AutoModelForCausalLM.from_pretrained(tiny.output / "merged_model-hf")
    base = AutoModelForCausalLM.from_pretrained(tiny.base)
    changed = merged.model.layers[0].self_attn.q_proj.weight - base.model.layers[0].self_attn.q_proj.weight
    assert float(changed.detach().abs().max()) > 0.01
