"""Bad input is named before or while it is met; one type's failure is its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from api_client.contract.quant_types import QuantType
from tests.golden.models import MODELS, build_imatrix, build_model
from tests.golden.record_files import RECORD, digest
from tests.unit.quantize.sources import leftovers, save_source
from worker.models.gguf.metadata import uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.imatrix.load import load_imatrix
from worker.models.quantize.engine import quantize_file
from worker.models.quantize.imatrix_data import ImatrixData
from worker.setting import WorkSetting

Q = QuantType
EXPECTED = json.loads(RECORD.read_text())


def refusal(source: Path, folder: Path, *kinds: QuantType, **options: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        quantize_file(source, {kind: folder / f"out-{kind.value}.gguf" for kind in kinds or (Q.Q8_0,)}, **options)
    assert not list(folder.glob("out-*"))
    return caught.value


def matrix(**entries: Any) -> ImatrixData:
    return ImatrixData("m.gguf", None, 0, {name.replace("__", "."): entry for name, entry in entries.items()})


@pytest.mark.parametrize(("value", "kind"), [(np.nan, np.float32), (np.inf, np.float32), (-np.inf, np.float16)])
def test_a_nan_or_infinity_in_the_source_is_named(tmp_path: Path, value: float, kind: type[np.floating[Any]]) -> None:
    bad = np.zeros((3, 64), kind)
    bad[2, 5] = value
    source = save_source(tmp_path / "m.gguf", {"blk.0.attn_q.weight": np.ones((2, 64), kind), "blk.1.x.weight": bad})
    error = refusal(source, tmp_path, Q.Q8_0, Q.Q4_0)
    assert error.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert error.fields == {"file": str(source), "tensor": "blk.1.x.weight", "row": 2, "column": 5}


def test_a_nan_in_a_tensor_that_is_only_copied_is_named_too(tmp_path: Path) -> None:
    norm = np.ones(8, np.float32)
    norm[7] = np.nan
    source = save_source(tmp_path / "m.gguf", {"blk.0.attn_norm.weight": norm})
    assert refusal(source, tmp_path).fields["tensor"] == "blk.0.attn_norm.weight"


def test_values_beyond_a_type_fail_that_type_alone(tmp_path: Path) -> None:
    weights = np.ones((4, 64), np.float32)
    weights[1, 1] = 1e6  # beyond float16, within bfloat16; as a scale of Q8_0 it is 7874
    source = save_source(tmp_path / "m.gguf", {"blk.0.attn_q.weight": weights})
    result = quantize_file(source, {kind: tmp_path / f"out-{kind.value}.gguf" for kind in (Q.F16, Q.BF16, Q.Q8_0)})
    assert set(result.failed) == {Q.F16}
    error = result.failed[Q.F16]
    assert error.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert error.fields == {"tensor": "blk.0.attn_q.weight", "type": "F16"}
    assert sorted(path.name for path in tmp_path.glob("out-*")) == ["out-BF16.gguf", "out-Q8_0.gguf"]


def test_a_size_limit_stops_only_the_files_beyond_it(tied: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the kernel refuses the larger file's space, and only that."""
    script = """
import json, resource, sys
from pathlib import Path
from api_client.contract.quant_types import QuantType
from worker.models.quantize.engine import quantize_file
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
folder = Path(sys.argv[2])
kinds = [QuantType.F32, QuantType.Q4_0, QuantType.F16, QuantType.Q8_0]
result = quantize_file(Path(sys.argv[1]), {k: folder / f"out-{k.value}.gguf" for k in kinds})
print(json.dumps({k.value: o.error and o.error.to_dict() for k, o in result.outcomes.items()}))
"""
    command = [sys.executable, "-c", script, str(tied), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    errors = json.loads(done.stdout)
    assert [kind for kind, error in errors.items() if error] == ["F32", "F16"]
    assert errors["F32"]["code"] == "disk_space_insufficient"
    assert errors["F32"]["fields"]["needed_bytes"] == EXPECTED["tied"]["F32"][0][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-Q4_0.gguf", "out-Q8_0.gguf"]
    assert digest(tmp_path / "out-Q8_0.gguf") == EXPECTED["tied"]["Q8_0"][0][1]


def test_a_limit_met_while_writing_removes_that_file_and_keeps_the_others(tied: Path, tmp_path: Path) -> None:
    """The limit falls when half the work is done, so writing fails, not the reservation."""
    script = """
import json, resource, sys
from pathlib import Path
from api_client.contract.quant_types import QuantType
from worker.models.quantize.engine import quantize_file
from worker.setting import WorkSetting
def report(progress):
    if progress.tensors_done == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
folder = Path(sys.argv[2])
kinds = [QuantType.Q8_0, QuantType.Q4_0]
paths = {k: folder / f"out-{k.value}.gguf" for k in kinds}
result = quantize_file(Path(sys.argv[1]), paths, setting=WorkSetting(report=report, threads=1))
print(json.dumps({k.value: o.error and o.error.code for k, o in result.outcomes.items()}))
"""
    command = [sys.executable, "-c", script, str(tied), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"Q8_0": "disk_space_insufficient", "Q4_0": None}
    assert [path.name for path in tmp_path.iterdir()] == ["out-Q4_0.gguf"]
    assert digest(tmp_path / "out-Q4_0.gguf") == EXPECTED["tied"]["Q4_0"][0][1]


def test_a_directory_that_is_missing_fails_its_type_alone(tied: Path, tmp_path: Path) -> None:
    paths: dict[AnyQuantType, Path] = {Q.Q8_0: tmp_path / "missing" / "out.gguf", Q.Q4_0: tmp_path / "out.gguf"}
    result = quantize_file(tied, paths)
    assert result.failed[Q.Q8_0].code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert digest(tmp_path / "out.gguf") == EXPECTED["tied"]["Q4_0"][0][1]


def test_a_name_taken_by_a_directory_fails_its_type_alone(tied: Path, tmp_path: Path) -> None:
    (tmp_path / "taken.gguf").mkdir()
    result = quantize_file(tied, {Q.Q8_0: tmp_path / "taken.gguf", Q.Q4_0: tmp_path / "out.gguf"})
    assert list(result.failed) == [Q.Q8_0]
    assert leftovers(tmp_path) == []


def test_when_every_type_fails_the_result_says_so(tied: Path, tmp_path: Path) -> None:
    result = quantize_file(tied, {kind: tmp_path / "missing" / kind.value for kind in (Q.Q8_0, Q.Q4_0)})
    assert set(result.failed) == {Q.Q8_0, Q.Q4_0}
    assert all(outcome.sha256 == "" for outcome in result.outcomes.values())


def test_a_quantized_source_is_refused_unless_allowed(tied: Path, tmp_path: Path) -> None:
    first = quantize_file(tied, {Q.Q8_0: tmp_path / "q8.gguf"}).outcomes[Q.Q8_0].path
    for kind in (Q.Q4_K_M, Q.Q8_0):
        error = refusal(first, tmp_path, kind)
        assert error.code is ErrorCode.GGUF_ALREADY_QUANTIZED
        assert error.fields["type"] == "Q8_0"
    again = quantize_file(first, {Q.Q8_0: tmp_path / "again.gguf"}, allow_requantize=True).outcomes[Q.Q8_0]
    assert again.sha256 == digest(first)


def test_requantizing_decodes_first(tmp_path: Path) -> None:
    weights = (np.arange(4 * 64, dtype=np.float32).reshape(4, 64) - 100) / 64
    source = save_source(tmp_path / "m.gguf", {"blk.0.attn_q.weight": weights})
    coarse = quantize_file(source, {Q.Q8_0: tmp_path / "q8.gguf"}).outcomes[Q.Q8_0].path
    back = quantize_file(coarse, {Q.F32: tmp_path / "f32.gguf"}, allow_requantize=True).outcomes[Q.F32].path
    with open_gguf(back) as file:
        values = file.tensor_bytes(file.tensors[0]).view(np.float32)
    assert not np.array_equal(values, weights)
    np.testing.assert_allclose(values, weights, atol=np.abs(weights).max() / 127)


def test_broken_sources_are_refused(tied: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tied.read_bytes()[:-5000])
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04" + bytes(1000))
    integers = save_source(tmp_path / "i.gguf", {"blk.0.ids.weight": np.ones((4, 64), np.int32)})
    facts = {cut: "truncated", foreign: "does not begin with GGUF", integers: "I32"}
    for source, fact in {**facts, tmp_path / "none.gguf": "does not exist"}.items():
        error = refusal(source, tmp_path)
        assert error.code is ErrorCode.GGUF_INVALID
        assert fact in error.message


def test_a_source_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "no tensors" in refusal(save_source(tmp_path / "m.gguf", {}), tmp_path).message


def test_an_output_may_not_be_the_source_nor_two_outputs_one_file(tied: Path, tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        quantize_file(tied, {Q.Q8_0: tied})
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    with pytest.raises(ValueError, match="distinct path"):
        quantize_file(tied, {Q.Q8_0: tmp_path / "a", Q.Q4_0: tmp_path / "a"})
    with pytest.raises(ValueError, match="distinct path"):
        quantize_file(tied, {})


def test_a_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    source = build_model(tmp_path / "experts.gguf", "experts")
    other = load_imatrix(build_imatrix(tmp_path / "dense.imatrix.gguf", "dense"))
    error = refusal(source, tmp_path, Q.Q4_K_M, imatrix=matrix(some__weight=np.ones((1, 64), np.float32)))
    assert error.code is ErrorCode.IMATRIX_MISMATCH
    error = refusal(build_model(tmp_path / "tied.gguf", "tied"), tmp_path, Q.Q4_K_M, imatrix=other)
    assert error.code is ErrorCode.IMATRIX_MISMATCH
    assert (error.fields["found"], error.fields["expected"]) == (256, 288)


def test_a_matrix_lacking_an_entry_is_refused_where_the_type_needs_it(tied: Path, tmp_path: Path) -> None:
    full = load_imatrix(build_imatrix(tmp_path / "tied.imatrix.gguf", "tied"))
    entries = {name: entry for name, entry in full.entries.items() if name != "blk.1.ffn_down.weight"}
    partial = ImatrixData(full.file_name, full.dataset, full.chunk_count, entries)
    error = refusal(tied, tmp_path, Q.Q4_K_M, Q.IQ2_XS, imatrix=partial)
    assert error.code is ErrorCode.IMATRIX_REQUIRED
    assert error.fields == {"quant_type": "IQ2_XS", "tensor": "blk.1.ffn_down.weight", "type": "IQ2_XS"}
    result = quantize_file(tied, {Q.Q4_K_M: tmp_path / "out.gguf"}, imatrix=partial)
    assert result.failed == {}


def test_a_matrix_with_a_nan_is_refused(tied: Path, tmp_path: Path) -> None:
    entry = np.ones((1, 288), np.float32)
    entry[0, 3] = np.nan
    error = refusal(tied, tmp_path, imatrix=matrix(blk__0__attn_q__weight=entry))
    assert error.code is ErrorCode.IMATRIX_INVALID
    assert error.fields["tensor"] == "blk.0.attn_q.weight"


def test_a_wrong_entry_for_the_embedding_is_ignored(tied: Path, tmp_path: Path) -> None:
    entries = {"token_embd.weight": np.ones((1, 5), np.float32), "blk.0.attn_q.weight": np.ones((1, 288), np.float32)}
    result = quantize_file(
        tied,
        {Q.Q4_0: tmp_path / "out.gguf"},
        imatrix=ImatrixData("m", None, 0, entries),
        setting=WorkSetting(threads=os.cpu_count()),
    )
    assert result.failed == {}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tied"])
def test_refusals_come_before_any_work(tmp_path: Path, name: str) -> None:
    source = build_model(tmp_path / f"{name}.gguf", name, extra={"general.alignment": uint32_value(64)})
    with pytest.raises(PackagingError) as caught:
        quantize_file(source, {Q.IQ1_M: tmp_path / "missing" / "x", Q.Q8_0: tmp_path / "out.gguf"})
    assert caught.value.code is ErrorCode.IMATRIX_REQUIRED
    assert caught.value.fields["quant_type"] == "IQ1_M"
    assert not (tmp_path / "out.gguf").exists()
