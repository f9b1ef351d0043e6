"""Every bad input the design names is refused by prepare or merge, with its code, the fact, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from tests.harness import run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_weights(tiny: TinyRun) -> None:
    (tiny.base / "model.safetensors").unlink()


def only_pickles(tiny: TinyRun) -> None:
    remove_weights(tiny)
    (tiny.base / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def cut_short(tiny: TinyRun) -> None:
    weights = tiny.base / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)


def missing_shard(tiny: TinyRun) -> None:
    weights = load_file(tiny.base / "model.safetensors")
    remove_weights(tiny)
    names = sorted(weights)
    save_file({name: weights[name] for name in names[:5]}, tiny.base / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 if index < 5 else 2}-of-00002.safetensors" for index, name in enumerate(names)}
    (tiny.base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def other_model(tiny: TinyRun) -> None:
    path = tiny.checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    save_file(tensors | {name: torch.ones(4, 96)}, path)


def not_finite(tiny: TinyRun) -> None:
    path = tiny.checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "v_proj.lora_B" in name)
    tensors[name][3, 1] = float("nan")
    save_file(tensors, path)


def no_tokenizer(tiny: TinyRun) -> None:
    (tiny.base / "tokenizer.model").unlink()


def full_weights(tiny: TinyRun) -> None:
    shutil.rmtree(tiny.checkpoint)
    shutil.copytree(tiny.base, tiny.checkpoint)


def no_checkpoints(tiny: TinyRun) -> None:
    shutil.rmtree(tiny.checkpoint)


def unknown_architecture(tiny: TinyRun) -> None:
    change_json(tiny.base / "config.json", architectures=["FancyNewForCausalLM"], model_type="fancy")


CASES: list[tuple[Callable[[TinyRun], Any], dict[str, Any], ErrorCode, str]] = [
    (lambda tiny: shutil.rmtree(tiny.base), {}, ErrorCode.BASE_MODEL_NOT_FOUND, "base"),
    (lambda tiny: (tiny.base / "config.json").unlink(), {}, ErrorCode.BASE_MODEL_INVALID, "config.json"),
    (only_pickles, {}, ErrorCode.WEIGHTS_PICKLED, "pytorch_model.bin"),
    (cut_short, {}, ErrorCode.WEIGHTS_TRUNCATED, "model.safetensors"),
    (missing_shard, {}, ErrorCode.WEIGHTS_SHARD_MISSING, "model-00002-of-00002.safetensors"),
    (other_model, {}, ErrorCode.ADAPTER_MISMATCH, "q_proj"),
    (not_finite, {}, ErrorCode.ADAPTER_NOT_FINITE, "v_proj"),
    (no_tokenizer, {}, ErrorCode.TOKENIZER_NOT_FOUND, "tokenizer"),
    (no_checkpoints, {"checkpoint": "latest"}, ErrorCode.CHECKPOINTS_EMPTY, "checkpoint-*"),
    (lambda _: None, {"checkpoint": "checkpoint-99"}, ErrorCode.CHECKPOINT_NOT_FOUND, "checkpoint-99"),
    (full_weights, {}, ErrorCode.CHECKPOINT_NOT_ADAPTER, "full weights"),
    (lambda _: None, {"template": "quantize_base"}, ErrorCode.CHECKPOINT_IS_ADAPTER, "quantize_base"),
    (unknown_architecture, {}, ErrorCode.UNSUPPORTED_ARCHITECTURE, "FancyNewForCausalLM"),
]


@pytest.mark.parametrize(
    ("damage", "fields", "code", "fact"), CASES, ids=[f"{case[2].value}-{index}" for index, case in enumerate(CASES)]
)
def test_bad_input_is_refused_early(
    tiny: TinyRun, tmp_path: Path, damage: Callable[[TinyRun], Any], fields: dict[str, Any], code: ErrorCode, fact: str
) -> None:
    damage(tiny)
    if "checkpoint" in fields:
        task = {"task_id": "t", "status": "completed", "base_model": str(tiny.base), "output_dir": str(tiny.run)}
        fields = fields | {"task": task}
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(**fields), tmp_path / "scratch", until=StageName.MERGE)
    assert refused.value.code is code
    assert fact in refused.value.message
    assert refused.value.remedy
    assert not tiny.output.exists()
    assert not list((tmp_path / "scratch").rglob("*.gguf"))


def test_full_weights_remedy_names_the_template(tiny: TinyRun, tmp_path: Path) -> None:
    full_weights(tiny)
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE)
    assert "quantize_base" in refused.value.remedy


def test_too_little_disk_says_needed_and_free(tiny: TinyRun, tmp_path: Path) -> None:
    settings = stage_settings(tmp_path / "home", disk_reserve_bytes=2**60)
    with pytest.raises(PackagingError, match=r"needed .*free .*B") as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE, settings=settings)
    assert refused.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT
    assert refused.value.fields["needed_bytes"] > 0


def test_output_directory_that_is_a_file_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.output.write_text("mine")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert tiny.output.read_text() == "mine"


def test_path_outside_the_allowed_roots_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    link = tmp_path / "run" / "elsewhere"
    link.symlink_to(tiny.base)
    settings = stage_settings(tmp_path / "home", allowed_roots=(tiny.run, tiny.output))
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(base_model=link), tmp_path / "scratch", until=StageName.PREPARE, settings=settings)
    assert refused.value.code is ErrorCode.PATH_NOT_ALLOWED


def test_file_of_another_job_is_not_overwritten(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.output.mkdir()
    (tiny.output / "merged_model.gguf").write_text("precious")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.OUTPUT_EXISTS
    assert (tiny.output / "merged_model.gguf").read_text() == "precious"


def test_a_file_that_is_no_matrix_is_refused_before_the_conversion(tiny: TinyRun, tmp_path: Path) -> None:
    matrix = tiny.run / "matrix.gguf"
    matrix.write_bytes(b"no matrix")
    with pytest.raises(PackagingError, match=r"matrix\.gguf") as refused:
        run_stages(tiny.request(imatrix=str(matrix)), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.IMATRIX_INVALID


def test_a_matrix_is_not_computed_where_it_could_not_be_published(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.output.mkdir()
    (tiny.output / "merged_model.imatrix.gguf").write_text("precious")
    with pytest.raises(PackagingError) as refused:
        run_stages(tiny.request(imatrix="compute"), tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.OUTPUT_EXISTS
