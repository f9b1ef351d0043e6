"""A finished file is judged as llama.cpp would judge it: layout without gaps, every number finite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.gguf.bytes_of_gguf import File, tensor
from worker.models.gguf.check import check_gguf
from worker.models.gguf.finite import SCALE_OFFSETS, first_not_finite
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import BLOCKS, GGMLType
from worker.models.gguf.writer import write_gguf

F16_INFINITY, F16_NAN, BF16_INFINITY = 0x7C00, 0xFE01, 0xFF80


def refusal(path: Path) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        check_gguf(path)
    return caught.value


def save(path: Path, file: File) -> Path:
    path.write_bytes(bytes(file))
    return path


def test_a_sound_file_passes(tmp_path: Path) -> None:
    checked = check_gguf(save(tmp_path / "m.gguf", File()))
    assert (checked.tensor_count, checked.type_counts) == (2, {"F32": 2})
    assert checked.size_bytes == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize(
    ("file", "fact"),
    [
        (File(tensors=[], data=b""), "no tensors"),
        (File(tensors=[tensor("b", (32,), 0, 128), tensor("a", (32,), 0, 0)]), "'b' is at offset 128, expected 0"),
        (File(tensors=[tensor("a", (8,), 0, 0), tensor("b", (32,), 0, 128)]), "'b' is at offset 128, expected 32"),
        (File(data=bytes(256 + 32)), "its data ends"),
        (File(data=bytes(256 + 1)), "its data ends"),
    ],
)
def test_a_layout_that_llama_cpp_refuses_is_refused(tmp_path: Path, file: File, fact: str) -> None:
    error = refusal(save(tmp_path / "m.gguf", file))
    assert error.code is ErrorCode.GGUF_INVALID
    assert fact in error.message


def test_missing_last_padding_passes(tmp_path: Path) -> None:
    file = File(tensors=[tensor("a", (9,), 0, 0)], data=bytes(36))
    assert check_gguf(save(tmp_path / "m.gguf", file)).tensor_count == 1


def test_a_nan_is_named_with_tensor_and_place(tmp_path: Path) -> None:
    good, bad = np.zeros(64, np.float16), np.zeros((3_000_000, 2), np.float16)
    bad.view(np.uint16)[2_999_999, 1] = F16_NAN
    tensors = [(TensorSpec("ok", (64,), GGMLType.F16), good), (TensorSpec("bad", (2, 3_000_000), GGMLType.F16), bad)]
    write_gguf(tmp_path / "m.gguf", {}, tensors, durable=False)
    error = refusal(tmp_path / "m.gguf")
    assert error.code is ErrorCode.WEIGHTS_NOT_FINITE
    assert error.fields["tensor"] == "bad"
    assert "element 5999999" in error.message
    assert check_gguf(tmp_path / "m.gguf", data=False).tensor_count == 2


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"),
    [
        (GGMLType.F32, np.uint32, 0x7F800000),
        (GGMLType.F32, np.uint32, 0xFFC00000),
        (GGMLType.F16, np.uint16, F16_INFINITY),
        (GGMLType.F16, np.uint16, F16_NAN),
        (GGMLType.BF16, np.uint16, BF16_INFINITY),
        (GGMLType.BF16, np.uint16, 0x7FC0),
        (GGMLType.F64, np.uint64, 0x7FF0000000000000),
    ],
)
def test_bad_floats_are_found_and_the_largest_good_ones_are_not(
    kind: GGMLType, dtype: type[np.unsignedinteger[Any]], bits: int
) -> None:
    values = np.zeros(300_001, dtype)
    largest = {GGMLType.F32: 0x7F7FFFFF, GGMLType.F16: 0xFBFF, GGMLType.BF16: 0x7F7F, GGMLType.F64: 0x7FEFFFFFFFFFFFFF}
    values[:] = largest[kind]
    assert first_not_finite(kind, values.view(np.uint8)) is None
    values[[300_000, 200_001]] = bits
    assert first_not_finite(kind, values.view(np.uint8)) == 200_001


@pytest.mark.parametrize(("kind", "offset"), [(kind, o) for kind, offsets in SCALE_OFFSETS.items() for o in offsets])
def test_a_bad_scale_is_found_wherever_the_block_keeps_it(kind: GGMLType, offset: int) -> None:
    blocks = np.full((40_000, BLOCKS[kind].size_bytes), 0x3C, np.uint8)
    assert first_not_finite(kind, blocks) is None
    blocks[39_999, offset : offset + 2] = (0x00, 0xFC)
    assert first_not_finite(kind, blocks) == 39_999
    blocks[7, offset : offset + 2] = (0x01, 0x7C)
    assert first_not_finite(kind, blocks) == 7


def test_every_type_of_a_quantized_file_has_its_scales_looked_at() -> None:
    exempt = {GGMLType.NVFP4, GGMLType.MXFP4, GGMLType.IQ1_M, GGMLType.Q8_K, GGMLType.Q8_1}
    assert {kind for kind in GGMLType if kind.is_quantized} - exempt == set(SCALE_OFFSETS)


def test_the_scale_of_iq1_m_is_put_together_from_four_words() -> None:
    block = np.zeros((3, 56), np.uint8)
    # 0x7C00 from the top four bits of the words at 48, 50, 52, 54, the lowest first
    block[1, 49], block[1, 51], block[1, 53], block[1, 55] = 0x00, 0x00, 0xC0, 0x70
    assert first_not_finite(GGMLType.IQ1_M, block) == 1
    block[1, 53] = 0xB0
    assert first_not_finite(GGMLType.IQ1_M, block) is None


def test_a_bad_mxfp4_exponent_and_q8_k_scale_are_found() -> None:
    mxfp4 = np.full((5, 17), 0xFF, np.uint8)
    mxfp4[:, 0] = 0x7F
    assert first_not_finite(GGMLType.MXFP4, mxfp4) is None
    mxfp4[3, 0] = 0xFF
    assert first_not_finite(GGMLType.MXFP4, mxfp4) == 3
    q8_k = np.zeros((2, 292), np.uint8)
    q8_k[1, :4] = (0, 0, 0x80, 0x7F)
    assert first_not_finite(GGMLType.Q8_K, q8_k) == 1


def test_integers_have_nothing_to_be_found() -> None:
    assert first_not_finite(GGMLType.I32, np.full(16, 0xFF, np.uint8)) is None
