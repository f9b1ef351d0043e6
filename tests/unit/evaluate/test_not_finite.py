"""Values that are no numbers: the file and the layer are named, and the other files keep their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.tiny import tiny_base
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.evaluate.run import Budget, Scores, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.models.gguf.reader import open_gguf
from worker.setting import WorkSetting

SEQUENCES = [TokenSequence("a", tuple(range(3, 43)), 1)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", dtype="float32")


def judge(base: Path, *paths: Path) -> Scores:
    files = [QuantizedFile(path.name, [path]) for path in paths]
    setting = WorkSetting(roots=Roots.anywhere())
    return evaluate_files(open_base_model(base), None, files, SEQUENCES, Budget(None), setting=setting)


def test_a_file_is_refused_with_the_layer_where_its_values_end(base: Path, tmp_path: Path) -> None:
    for name in ("sound.gguf", "broken.gguf"):
        setting = WorkSetting(scratch_dir=tmp_path, roots=Roots.anywhere())
        convert(base, tmp_path / name, gguf_dtype="f32", setting=setting)
    with open_gguf(tmp_path / "broken.gguf") as file:
        tensor = file.by_name["blk.1.ffn_down.weight"]
        start = file.data_offset + tensor.offset
    data = np.memmap(tmp_path / "broken.gguf", np.float32, "r+", start, (4,))
    data[:] = np.nan
    data.flush()
    scores = judge(base, tmp_path / "sound.gguf", tmp_path / "broken.gguf")
    assert scores.refused == {"broken.gguf": "it gives NaN or infinite values after model.layers.1"}
    assert set(scores.others) == {"sound.gguf"}
    assert scores.others["sound.gguf"].kld.max() < 1e-6


def test_a_reference_without_numbers_is_no_reference(base: Path, tmp_path: Path) -> None:
    path = base / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.down_proj.weight"][0, 0] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(PackagingError) as caught:
        judge(base)
    assert caught.value.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert caught.value.fields["layer"] == "model.layers.0"
