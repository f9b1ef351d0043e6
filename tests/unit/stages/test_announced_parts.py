"""What the adapter's config says was trained, and its file has nothing of, is told before anything is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from api_client.contract.job import StageName
from tests.harness import RecordingReporter, run_stages
from tests.unit.stages.conftest import TinyRun


def told(run: TinyRun, scratch: Path) -> list[str]:
    reporter = RecordingReporter()
    run_stages(run.request(), scratch, until=StageName.PREPARE, reporter=reporter)
    return [line for level, line in reporter.lines if level == "warning"]


def announce(run: TinyRun, **settings: Any) -> None:
    path = run.checkpoint / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_save": ["lm_head", "score"]}, "modules_to_save of adapter_config.json names lm_head, and"),
        ({"trainable_token_indices": [7, 8]}, "trainable_token_indices of adapter_config.json names rows of the emb"),
        ({"trainable_token_indices": {"embed_tokens": [7]}}, "trainable_token_indices of adapter_config.json"),
    ],
)
def test_what_is_announced_and_absent_is_told(
    tiny: TinyRun, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    assert told(tiny, tmp_path / "before") == []
    announce(tiny, **settings)
    [line] = told(tiny, tmp_path / "scratch")
    assert line.startswith(named)
    assert "if that was trained, its training is not in the files" in line


def test_a_target_without_a_single_tensor_is_told(tiny: TinyRun, tmp_path: Path) -> None:
    announce(tiny, target_modules=["q_proj", "v_proj", "c_attn"])  # no layer of the base has the last
    weights = load_file(tiny.checkpoint / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if "q_proj" not in name}
    save_file(kept, tiny.checkpoint / "adapter_model.safetensors", {"format": "pt"})
    [line] = told(tiny, tmp_path / "scratch")
    assert line.startswith("target_modules of adapter_config.json names q_proj, and checkpoint-10 has no tensor")
