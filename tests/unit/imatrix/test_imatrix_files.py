"""Importance matrix files: llama.cpp's own are read, ours are what llama.cpp writes, and damaged ones are refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.golden.models import build_imatrix
from tests.golden.record_files import RECORD, digest
from tests.unit.imatrix.imatrix_models import DATA
from worker.models.gguf.metadata import MetadataValue, ValueType, string_value, uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.gguf.writer import write_gguf
from worker.models.imatrix.gguf_form import write_imatrix
from worker.models.imatrix.load import load_imatrix, read_imatrix
from worker.models.imatrix.merge import merge_imatrices
from worker.models.imatrix.sums import ImatrixSums, TensorSums

SUMS = np.array([[2.0, 4.0, 6.0, 8.0], [9.0, 9.0, 9.0, 9.0]], np.float32)
NAN, INF = float("nan"), float("inf")


def tensor(name: str, values: Any, ggml_type: GGMLType = GGMLType.F32) -> tuple[TensorSpec, np.ndarray]:
    values = np.asarray(values, np.float32)
    return TensorSpec(name, values.shape[::-1], ggml_type), values


def metadata(**changes: Any) -> dict[str, Any]:
    keys = {
        "general.type": string_value("imatrix"),
        "imatrix.datasets": MetadataValue.array(ValueType.STRING, ["a.txt", "b.txt"]),
        "imatrix.chunk_count": uint32_value(7),
        "imatrix.chunk_size": uint32_value(512),
    } | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in keys.items() if value is not None}


def write(path: Path, tensors: Any, **changes: Any) -> Path:
    write_gguf(path, metadata(**changes), tensors, durable=False)
    return path


def legacy(entries: Any, trailer: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data + trailer


def refusal(path: Path) -> str:
    with pytest.raises(PackagingError) as caught:
        load_imatrix(path)
    assert caught.value.code is ErrorCode.IMATRIX_INVALID
    assert path.name in caught.value.message
    return caught.value.message


def test_sums_are_divided_by_counts_and_an_expert_without_tokens_gets_ones(tmp_path: Path) -> None:
    tensors = [tensor("blk.0.x.weight.in_sum2", SUMS), tensor("blk.0.x.weight.counts", [[2.0], [0.0]])]
    matrix = load_imatrix(write(tmp_path / "m.gguf", tensors))
    assert (matrix.file_name, matrix.dataset, matrix.chunk_count) == ("m.gguf", "a.txt", 7)
    assert matrix.entries["blk.0.x.weight"].tolist() == [[1, 2, 3, 4], [1, 1, 1, 1]]
    assert matrix.entries["blk.0.x.weight"].dtype == np.float32


@pytest.mark.parametrize(("count", "mean"), [(2.4, 1.0), (2.5, 2 / 3), (0.4, 1.0), (0.5, 2.0)])
def test_counts_are_rounded_half_away_from_zero_as_lround_does(count: float, mean: float, tmp_path: Path) -> None:
    tensors = [tensor("t.in_sum2", [[2.0]]), tensor("t.counts", [[count]])]
    assert load_imatrix(write(tmp_path / "m.gguf", tensors)).entries["t"][0, 0] == np.float32(mean)


def test_what_the_reference_tool_wrote_in_both_forms_is_the_same_matrix() -> None:
    new, old = load_imatrix(DATA / "llama-imatrix.gguf"), load_imatrix(DATA / "llama-imatrix.dat")
    assert (new.dataset, new.chunk_count) == (old.dataset, old.chunk_count) == ("text.txt", 46)
    assert new.entries.keys() == old.entries.keys()
    assert len(new.entries) == 8
    assert new.entries["blk.0.ffn_down_exps.weight"].shape == (3, 48)
    assert old.entries["blk.0.ffn_down_exps.weight"].shape == (1, 144)
    for name, entry in new.entries.items():
        np.testing.assert_allclose(old.entries[name].ravel(), entry.ravel(), rtol=3e-7, err_msg=name)


@pytest.mark.parametrize("model", ["dense", "experts"])
def test_a_matrix_that_llama_quantize_took_is_read_and_written_without_a_change(model: str, tmp_path: Path) -> None:
    given = build_imatrix(tmp_path / "given.gguf", model)
    assert digest(given) == json.loads(RECORD.read_text())[model]["imatrix"]
    write_imatrix(tmp_path / "again.gguf", read_imatrix(given))
    assert load_imatrix(tmp_path / "again.gguf").sha256 == load_imatrix(given).sha256


def test_what_we_write_is_laid_out_as_the_reference_tool_does(tmp_path: Path) -> None:
    """All keys and tensors of ours stand in its file with the same bytes; it adds statistics for printing."""
    write_imatrix(tmp_path / "ours.gguf", read_imatrix(DATA / "llama-imatrix.gguf"))
    with open_gguf(tmp_path / "ours.gguf") as ours, open_gguf(DATA / "llama-imatrix.gguf") as theirs:
        assert list(ours.metadata) == [key for key in theirs.metadata if key != "imatrix.stats_schema"]
        assert all(theirs.metadata[key] == value for key, value in ours.metadata.items())
        kept = [tensor for tensor in theirs.tensors if tensor.name.endswith((".in_sum2", ".counts", ".in_sum"))]
        assert [(t.name, t.shape, t.type) for t in ours.tensors] == [(t.name, t.shape, t.type) for t in kept]
        for mine, other in zip(ours.tensors, kept, strict=True):
            assert np.array_equal(ours.tensor_bytes(mine), theirs.tensor_bytes(other)), mine.name


def test_a_written_matrix_is_read_back(tmp_path: Path) -> None:
    sums = ImatrixSums(("日本.txt",), 3, 128, {"b": TensorSums(SUMS, np.array([4, 5], np.float32))})
    write_imatrix(tmp_path / "m.gguf", sums)
    again = read_imatrix(tmp_path / "m.gguf")
    assert (again.datasets, again.chunk_count, again.chunk_tokens) == (("日本.txt",), 3, 128)
    assert np.array_equal(again.entries["b"].in_sum2, SUMS)
    assert again.entries["b"].counts.tolist() == [4, 5]


def test_matrices_are_merged_as_if_their_texts_had_been_run_together() -> None:
    def matrix(name: str, scale: float, plain: bool, tensors: str) -> ImatrixSums:
        entry = TensorSums(SUMS * scale, np.array([4, 5], np.float32), -SUMS * scale if plain else None)
        return ImatrixSums((name,), 3, 512, dict.fromkeys(tensors, entry))

    merged = merge_imatrices([("one", matrix("a.txt", 1, True, "bc")), ("two", matrix("b.txt", 2, True, "b"))])
    assert (merged.datasets, merged.chunk_count, merged.chunk_tokens) == (("a.txt", "b.txt"), 6, 512)
    assert np.array_equal(merged.entries["b"].in_sum2, SUMS * 3)
    assert merged.entries["b"].counts.tolist() == [8, 10]
    plain = merged.entries["b"].in_sum
    assert plain is not None
    assert np.array_equal(plain, -SUMS * 3)
    assert np.array_equal(merged.entries["c"].in_sum2, SUMS)
    without = merge_imatrices([("one", matrix("a", 1, True, "b")), ("two", matrix("a", 1, False, "b"))])
    assert without.datasets == ("a",)
    assert without.entries["b"].in_sum is None, "half of the sums is no sum"
    other = ImatrixSums((), 1, 512, {"b": TensorSums(SUMS[:, :1], np.array([4, 5], np.float32))})
    with pytest.raises(PackagingError) as caught:
        merge_imatrices([("one", matrix("a", 1, True, "b")), ("two.gguf", other)])
    assert caught.value.code is ErrorCode.IMATRIX_INVALID
    assert caught.value.fields["file"] == "two.gguf"


def test_legacy_values_are_divided_by_their_calls_and_the_trailer_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(legacy([(b"a.weight", 4, [4.0, 8.0]), (b"b.weight", 0, [3.0])]))
    matrix = load_imatrix(path)
    assert {name: entry.tolist() for name, entry in matrix.entries.items()} == {"a.weight": [[1, 2]], "b.weight": [[3]]}
    assert (matrix.dataset, matrix.chunk_count) == (None, 0)


def test_a_legacy_matrix_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = legacy([(b"a.weight", 4, [4.0, 8.0])], struct.pack("<ii", 9, 3) + b"x.t")
    trailer_bytes = 11
    for size in range(len(whole)):
        if size == len(whole) - trailer_bytes:
            continue  # a whole file of the oldest kind
        path = tmp_path / f"cut-{size}.dat"
        path.write_bytes(whole[:size])
        refusal(path)


def test_a_gguf_matrix_cut_anywhere_is_refused(tmp_path: Path) -> None:
    tensors = [tensor("t.in_sum2", [[2.0, 3.0]]), tensor("t.counts", [[2.0]])]
    whole = write(tmp_path / "m.gguf", tensors).read_bytes()
    for size in range(len(whole) - 28):  # the last tensor's padding may be missing
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:size])
        refusal(path)


@pytest.mark.parametrize(
    ("sums", "counts", "fact"),
    [
        ([[NAN, 1.0]], [[1.0]], "1 NaN or infinite sums"),
        ([[INF, INF]], [[1.0]], "2 NaN or infinite sums"),
        ([[-1.0, 1.0]], [[1.0]], "1 negative sums"),
        ([[1.0, 1.0]], [[NAN]], "1 NaN or infinite counts"),
        ([[1.0, 1.0]], [[INF]], "1 NaN or infinite counts"),
        ([[1.0, 1.0]], [[-3.0]], "1 negative counts"),
        ([[1.0, 1.0, 1.0]], [[1.0], [1.0]], "3 sums and 2 counts"),
    ],
)
def test_impossible_statistics_are_refused_with_the_tensor_named(
    sums: list[list[Any]] | list[list[float]], counts: list[list[Any]] | list[list[float]], fact: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.gguf", [tensor("blk.3.w.in_sum2", sums), tensor("blk.3.w.counts", counts)])
    message = refusal(path)
    assert fact in message
    assert "blk.3.w" in message


def test_sums_that_no_row_went_into_may_hold_anything(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf", [tensor("t.in_sum2", [[NAN, -1.0], [4.0, 6.0]]), tensor("t.counts", [[0.4], [2.0]])]
    )
    assert load_imatrix(path).entries["t"].tolist() == [[1, 1], [2, 3]]


def test_parts_of_a_matrix_that_are_missing_or_of_another_type_are_named(tmp_path: Path) -> None:
    good = [tensor("t.in_sum2", [[2.0]]), tensor("t.counts", [[2.0]])]
    path = tmp_path / "m.gguf"
    assert "without counts" in refusal(write(path, good[:1]))
    assert "without counts" in refusal(write(path, good[1:]))
    assert "no entries" in refusal(write(path, []))
    assert "no entries" in refusal(write(path, [tensor("blk.0.attn_q.weight", [[1.0]])]))
    assert "imatrix.datasets missing" in refusal(write(path, good, imatrix__datasets=None))
    assert "imatrix.chunk_size missing" in refusal(write(path, good, imatrix__chunk_size=None))
    assert "not a list" in refusal(write(path, good, imatrix__datasets=string_value("a")))
    assert "imatrix.chunk_count" in refusal(write(path, good, imatrix__chunk_count=string_value("7")))
    assert "imatrix.chunk_count" in refusal(
        write(path, good, imatrix__chunk_count=MetadataValue.scalar(ValueType.INT32, -1))
    )
    halves = (TensorSpec("t.in_sum2", (2,), GGMLType.F16), np.ones(2, np.float16))
    assert "F16" in refusal(write(path, [halves, good[1]]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"This is a text and not a matrix at all.",
        struct.pack("<i", -1) + bytes(64),
        struct.pack("<i", 2**31 - 1) + bytes(64),
        legacy([(b"", 1, [1.0])]),
        legacy([(b"a", 1, [1.0]), (b"a", 1, [1.0])]),
        legacy([(b"a", -2, [1.0])]),
        legacy([(b"a", 1, [NAN])]),
        legacy([(b"a", 1, [-1.0])]),
        struct.pack("<ii", 1, -5) + bytes(64),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1) + bytes(32),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1) + bytes(32),
        legacy([(b"a", 1, [1.0])], struct.pack("<ii", -1, 0)),
        legacy([(b"a", 1, [1.0])], struct.pack("<ii", 1, -1)),
        legacy([(b"a", 1, [1.0])], struct.pack("<ii", 1, 500)),
    ],
)
def test_what_is_no_matrix_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.dat"
    path.write_bytes(content)
    refusal(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "missing.gguf")
    (tmp_path / "folder.gguf").mkdir()
    refusal(tmp_path / "folder.gguf")


def test_a_model_given_as_a_matrix_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {"general.architecture": string_value("llama")}, [tensor("output.weight", [[1.0]])], durable=False)
    assert "no importance matrix" in refusal(path)
