"""Headers of safetensors files, right and wrong in every way the format allows to be wrong."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.checkpoint.raw_files import entry, write_raw
from worker.models.checkpoint import read_safetensors_header

_INVALID, _TRUNCATED = ErrorCode.BASE_MODEL_INVALID, ErrorCode.WEIGHTS_TRUNCATED
_FINE = {"a": entry([2], 0, 8)}


def test_a_file_of_the_reference_writer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(0, 4), "c": torch.tensor(1.0)}
    save_file(tensors, path, metadata={"format": "pt"})

    header = read_safetensors_header(path)

    assert header.metadata == {"format": "pt"}
    assert header.size_bytes == path.stat().st_size
    assert {name: (e.dtype, e.shape, e.size_bytes) for name, e in header.tensors.items()} == {
        "a": ("BF16", (2, 3), 12),
        "b": ("F32", (0, 4), 0),
        "c": ("F32", (), 4),
    }


@pytest.mark.parametrize(
    ("header", "data", "code", "fact"),
    [
        (b"{}", b"", None, ""),
        (_FINE, bytes(7), _TRUNCATED, "describes"),
        (_FINE, bytes(9), _TRUNCATED, "describes"),
        (b"[]", b"", _INVALID, "not a JSON object"),
        (b'{"a": ', b"", _INVALID, "not valid JSON"),
        (b"\xff\xfe", b"", _INVALID, "not valid JSON"),
        (b"[" * 100_000, b"", _INVALID, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", _INVALID, "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", _INVALID, "twice"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), _INVALID, "lacks"),
        ({"a": {**entry([2], 0, 8), "more": 1}}, bytes(8), _INVALID, "more than"),
        ({"a": entry([2], 0, 8, "F128")}, bytes(8), _INVALID, "unknown dtype"),
        ({"a": entry([2], 0, 8, ["F32"])}, bytes(8), _INVALID, "unknown dtype"),
        ({"a": entry([-2], 0, 8)}, bytes(8), _INVALID, "impossible shape"),
        ({"a": entry([2.0], 0, 8)}, bytes(8), _INVALID, "impossible shape"),
        ({"a": entry([True], 0, 4)}, bytes(4), _INVALID, "impossible shape"),
        ({"a": entry([1] * 17, 0, 4)}, bytes(4), _INVALID, "impossible shape"),
        ({"a": entry([2**62, 2**62], 0, 8)}, bytes(8), _INVALID, "needs"),
        ({"a": entry([2], 8, 0)}, bytes(8), _INVALID, "needs"),
        ({"a": entry([2], 0, 4)}, bytes(4), _INVALID, "needs 8 bytes"),
        ({"a": {**entry([2], 0, 8), "data_offsets": [0]}}, bytes(8), _INVALID, "data_offsets"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), _INVALID, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8), _INVALID, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20), _INVALID, "hole"),
        ({"a": entry([2], 4, 12)}, bytes(12), _INVALID, "hole"),
        ({"__metadata__": {"a": 1}, **_FINE}, bytes(8), _INVALID, "__metadata__"),
        ({"__metadata__": [], **_FINE}, bytes(8), _INVALID, "__metadata__"),
    ],
)
def test_hostile_headers(header: bytes, data: bytes, code: ErrorCode | None, fact: str, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", header, data)
    if code is None:
        assert read_safetensors_header(path).tensors == {}
        return

    with pytest.raises(PackagingError) as caught:
        read_safetensors_header(path)

    assert caught.value.code is code
    assert fact in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("length", "code"),
    [(2**63, _INVALID), (100_000_001, _INVALID), (1000, _TRUNCATED)],
)
def test_header_lengths_that_cannot_be(length: int, code: ErrorCode, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model.safetensors", _FINE, bytes(8), length=length)

    with pytest.raises(PackagingError) as caught:
        read_safetensors_header(path)
    assert caught.value.code is code


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_files_too_short_for_a_length(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(PackagingError) as caught:
        read_safetensors_header(path)
    assert caught.value.code is _TRUNCATED


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "model.safetensors"
    os.mkfifo(fifo)

    with pytest.raises(PackagingError, match="regular file"):
        read_safetensors_header(fifo)


def test_the_caller_names_the_code(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "adapter_model.safetensors", b"[]")

    with pytest.raises(PackagingError) as caught:
        read_safetensors_header(path, invalid=ErrorCode.ADAPTER_INVALID)
    assert caught.value.code is ErrorCode.ADAPTER_INVALID


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=120), st.integers(0, 140))
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, raw: bytes, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + raw)

    with contextlib.suppress(PackagingError):
        header = read_safetensors_header(path)
        assert sum(e.size_bytes for e in header.tensors.values()) == len(raw) - length
