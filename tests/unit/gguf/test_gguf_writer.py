"""The writer makes files that this reader and upstream's agree on."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from worker.models.gguf.metadata import MetadataValue, ValueType, string_value, uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorSpec, normal_shape, place_tensors
from worker.models.gguf.types import BLOCKS, GGMLType, row_bytes, tensor_bytes
from worker.models.gguf.writer import encode_header, write_gguf

METADATA = {
    "general.architecture": string_value("llama"),
    "a.list": MetadataValue.array(ValueType.INT32, [3, -4]),
    "a.text": MetadataValue.array(ValueType.STRING, ["x", "y\u00e9"]),
    "a.flag": MetadataValue.scalar(ValueType.BOOL, True),
}
ROWS = np.arange(64, dtype=np.float32).reshape(4, 16)
HALVES = np.arange(5, dtype=np.float16)


def write(path: Path, metadata: Any = METADATA) -> Path:
    tensors: list[tuple[TensorSpec, np.ndarray]] = [
        (TensorSpec("rows.weight", (16, 4), GGMLType.F32), ROWS),
        (TensorSpec("halves", (5,), GGMLType.F16), HALVES),
        (TensorSpec("last", (3,), GGMLType.I8), np.array([1, 2, 3], np.int8)),
    ]
    write_gguf(path, metadata, tensors)
    return path


def test_upstreams_reader_sees_the_same(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf"))
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["a.list"].contents() == [3, -4]
    assert reader.fields["a.text"].contents() == ["x", "y\u00e9"]
    assert reader.fields["a.flag"].contents() is True
    assert [(t.name, list(t.shape), t.tensor_type.name) for t in reader.tensors] == [
        ("rows.weight", [16, 4], "F32"),
        ("halves", [5], "F16"),
        ("last", [3], "I8"),
    ]
    np.testing.assert_array_equal(reader.tensors[0].data, ROWS)
    np.testing.assert_array_equal(reader.tensors[1].data, HALVES)


@pytest.mark.parametrize("alignment", [32, 8, 256])
def test_data_lies_where_the_header_says(tmp_path: Path, alignment: int) -> None:
    path = write(tmp_path / "m.gguf", {**METADATA, "general.alignment": uint32_value(alignment)})
    with open_gguf(path) as file:
        assert file.alignment == alignment
        assert all(tensor.offset % alignment == 0 for tensor in file.tensors)
        assert file.tensor_bytes(file.by_name["halves"]).tobytes() == HALVES.tobytes()
        assert file.tensor_bytes(file.by_name["last"]).tobytes() == b"\1\2\3"
        assert path.stat().st_size % alignment == 0
        assert dict(file.metadata) == {**METADATA, "general.alignment": uint32_value(alignment)}


def test_metadata_read_is_written_back_to_the_byte(tmp_path: Path) -> None:
    first = write(tmp_path / "a.gguf")
    with open_gguf(first) as file:
        assert encode_header(file.metadata, file.tensors) == first.read_bytes()[: file.data_offset]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.gguf").read_bytes() == write(tmp_path / "b.gguf").read_bytes()


def test_an_array_of_another_size_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x: 12 bytes given, 16 expected"):
        write_gguf(tmp_path / "m.gguf", {}, [(TensorSpec("x", (4,), GGMLType.F32), np.zeros(3, np.float32))])
    assert list(tmp_path.iterdir()) == []


def test_offsets_are_padded_sums() -> None:
    specs = [TensorSpec(name, (count,), GGMLType.I8) for name, count in (("a", 1), ("b", 32), ("c", 33), ("d", 5))]
    assert [tensor.offset for tensor in place_tensors(specs)] == [0, 32, 64, 128]
    assert [tensor.offset for tensor in place_tensors(specs, 64)] == [0, 64, 128, 192]


@pytest.mark.parametrize(("shape", "expected"), [((), (1,)), ((1, 1), (1,)), ((5, 1), (5,)), ((1, 5), (1, 5))])
def test_shapes_lose_trailing_ones(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert normal_shape(shape) == expected


def test_block_sizes_are_upstreams() -> None:
    for kind, (length, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":
            continue  # upstream's table gives it two float32 where ggml has two float16; no file holds the type
        assert (kind.name, BLOCKS[GGMLType[kind.name]]) == (kind.name, (length, size))
        assert GGMLType[kind.name] == kind.value


def test_row_bytes_are_whole_blocks() -> None:
    assert row_bytes(GGMLType.Q4_K, 512) == 288
    assert tensor_bytes(GGMLType.Q8_0, (64, 3, 2)) == 2 * 34 * 6
    with pytest.raises(ValueError, match="300 is not a multiple of the 256 of Q6_K"):
        row_bytes(GGMLType.Q6_K, 300)
