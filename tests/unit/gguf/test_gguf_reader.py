"""The reader believes nothing: sound files are read exactly, broken and hostile ones refused by name."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.gguf.bytes_of_gguf import File, pair, parse_gguf, tensor, text
from worker.models.gguf.metadata import MetadataValue, ValueType, get_value
from worker.models.gguf.reader import MAX_HEADER_BYTES, GGUFFile, open_gguf
from worker.models.gguf.types import GGMLType

HUGE = 2**64 - 1


def refused(data: bytes) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        parse_gguf(data, "model.gguf")
    assert caught.value.code is ErrorCode.GGUF_INVALID
    assert "model.gguf" in caught.value.message
    return caught.value


def test_a_sound_file_is_read() -> None:
    file = parse_gguf(bytes(File(data=bytes(range(256)))))
    assert file.version == 3
    assert file.alignment == 32
    assert get_value(file.metadata, "general.architecture") == "llama"
    assert [(t.name, t.shape, t.type, t.offset, t.size_bytes) for t in file.tensors] == [
        ("a", (8, 4), GGMLType.F32, 0, 128),
        ("b", (32,), GGMLType.F32, 128, 128),
    ]
    assert file.tensor_bytes(file.by_name["b"]).tobytes() == bytes(range(128, 256))
    assert file.tensor_bytes(file.by_name["a"]).shape == (4, 32)


def test_version_2_has_the_same_layout() -> None:
    assert parse_gguf(bytes(File(version=2))).version == 2


@pytest.mark.parametrize(
    ("tag", "raw", "value"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xff\xff", 65535),
        (3, b"\xff\xff", -1),
        (4, b"\0\0\0\x80", 2**31),
        (5, b"\0\0\0\x80", -(2**31)),
        (6, struct.pack("<f", 0.5), 0.5),
        (7, b"\1", True),
        (8, text("caf\u00e9"), "caf\u00e9"),
        (10, b"\xff" * 8, HUGE),
        (11, b"\xff" * 8, -1),
        (12, struct.pack("<d", 0.1), 0.1),
        (9, struct.pack("<IQ", 5, 2) + struct.pack("<ii", -1, 7), [-1, 7]),
        (9, struct.pack("<IQ", 8, 3) + text("x") + text("") + text("yz"), ["x", "", "yz"]),
        (9, struct.pack("<IQ", 6, 0), []),
    ],
)
def test_every_value_type_is_decoded_and_encoded_back(tag: int, raw: bytes, value: Any) -> None:
    found = parse_gguf(bytes(File(pairs=[pair("k", tag, raw)]))).metadata["k"]
    assert found.value == value
    assert found.encode() == struct.pack("<I", tag) + raw
    if tag == 9:
        assert MetadataValue.array(found.type, value) == found
    else:
        assert MetadataValue.scalar(ValueType(tag), value) == found


def test_text_that_is_not_utf8_survives() -> None:
    found = parse_gguf(bytes(File(pairs=[pair("k", 8, text(b"\xff\xfea"))]))).metadata["k"]
    assert MetadataValue.scalar(ValueType.STRING, found.value) == found


def test_trailing_ones_are_no_dimensions() -> None:
    tensors = [tensor("a", (8, 4, 1, 1), 0, 0), tensor("s", (), 0, 128), tensor("one", (1, 1), 0, 160)]
    file = parse_gguf(bytes(File(tensors=tensors)))
    assert [t.shape for t in file.tensors] == [(8, 4), (1,), (1,)]


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_any_power_of_two_aligns(alignment: int) -> None:
    file = File(pairs=[pair("general.alignment", 4, struct.pack("<I", alignment))], alignment=alignment)
    file.tensors = [tensor("a", (8,), 0, 0), tensor("b", (1,), 0, max(alignment, 32))]
    file.data = bytes(max(alignment, 32)) + b"\1\2\3\4"
    parsed = parse_gguf(bytes(file))
    assert parsed.data_offset % alignment == 0
    assert parsed.tensor_bytes(parsed.by_name["b"]).tobytes() == b"\1\2\3\4"


@pytest.mark.parametrize(
    ("broken", "fact"),
    [
        (b"", "does not begin with GGUF"),
        (b"GG", "does not begin with GGUF"),
        (b"PK\3\4" + bytes(60), "does not begin with GGUF"),
        (b"GGUF", "ends inside the version"),
        (bytes(File(version=1)), "version 1"),
        (bytes(File(version=4)), "version 4"),
        (bytes(File(version=3 << 24)), "big-endian"),
        (bytes(File(pair_count=HUGE)), "announces"),
        (bytes(File(tensor_count=HUGE)), "announces"),
        (bytes(File(tensor_count=2**40)), "announces"),
        (bytes(File(pair_count=2, tensors=[], data=b"")), "key 1 is ''"),
        (bytes(File(pairs=[struct.pack("<Q", HUGE)])), "ends inside metadata key 0"),
        (bytes(File(pairs=[pair("", 0, b"\0")])), "key 0 is ''"),
        (bytes(File(pairs=[pair("a\0b", 0, b"\0")])), "key 0 is"),
        (bytes(File(pairs=[pair("k", 0, b"\0")] * 2)), "'k' stands twice"),
        (bytes(File(pairs=[pair("k", 13, bytes(8))])), "unknown type 13"),
        (bytes(File(pairs=[pair("k", 9, struct.pack("<IQ", 9, 1) + bytes(20))])), "array of arrays"),
        (bytes(File(pairs=[pair("k", 9, struct.pack("<IQ", 10, 2**61))])), "ends inside"),
        (bytes(File(pairs=[pair("k", 9, struct.pack("<IQ", 8, HUGE))])), "announces"),
        (bytes(File(pairs=[pair("k", 9, struct.pack("<IQ", 8, 2) + text("x") + struct.pack("<Q", 2**40))])), "ends in"),
        (bytes(File(pairs=[pair("general.alignment", 4, struct.pack("<I", 0))])), "not a power of two"),
        (bytes(File(pairs=[pair("general.alignment", 4, struct.pack("<I", 48))])), "not a power of two"),
        (bytes(File(pairs=[pair("general.alignment", 10, struct.pack("<Q", 32))])), "not a uint32"),
        (bytes(File(tensors=[tensor("", (4,), 0, 0)])), "1 to 63 bytes"),
        (bytes(File(tensors=[tensor("n" * 64, (4,), 0, 0)])), "1 to 63 bytes"),
        (bytes(File(tensors=[tensor("a\0", (4,), 0, 0)])), "1 to 63 bytes"),
        (bytes(File(tensors=[tensor("a", (4,), 0, 0)] * 2)), "'a' stands twice"),
        (bytes(File(tensors=[tensor("a", (1, 1, 1, 1, 1), 0, 0)])), "5 dimensions"),
        (bytes(File(tensors=[text("a") + struct.pack("<I", 2**31)])), "dimensions"),
        (bytes(File(tensors=[tensor("a", (4,), 4, 0)])), "unknown type 4"),
        (bytes(File(tensors=[tensor("a", (4,), 99, 0)])), "unknown type 99"),
        (bytes(File(tensors=[tensor("a", (33,), 2, 0)])), "33 is not a multiple of the 32 of Q4_0"),
        (bytes(File(tensors=[tensor("a", (2**32, 2**32), 0, 0)])), "impossible shape"),
        (bytes(File(tensors=[tensor("a", (2**63,), 0, 0)])), "impossible shape"),
        (bytes(File(tensors=[tensor("a", (2**62, 0, 2**62), 0, 0)])), "impossible shape"),
        (bytes(File(tensors=[tensor("a", (4,), 0, 16)])), "not aligned to 32"),
        (bytes(File(tensors=[tensor("a", (4,), 0, 256)])), "truncated"),
        (bytes(File(tensors=[tensor("a", (4,), 0, 2**64 - 32)])), "truncated"),
        (bytes(File(tensors=[tensor("a", (65,), 0, 0)])), "truncated"),
        (bytes(File(tensors=[tensor("a", (16,), 0, 0), tensor("b", (4,), 0, 32)])), "'b' at offset 32 overlaps 'a'"),
        (bytes(File(tensors=[tensor("a", (4,), 0, 0), tensor("b", (4,), 0, 0)])), "overlaps"),
    ],
)
def test_what_is_wrong_is_named(broken: bytes, fact: str) -> None:
    assert fact in refused(broken).message


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = bytes(File())
    for length in range(len(whole)):
        refused(whole[:length])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_random_damage_is_read_or_refused_never_worse(data: st.DataObject) -> None:
    whole = bytearray(bytes(File(pairs=[pair("k", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yy"))])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 257))] = data.draw(st.integers(0, 255))
    outcome: GGUFFile | PackagingError
    try:
        outcome = parse_gguf(bytes(whole), "model.gguf")
    except PackagingError as error:
        outcome = error
    if isinstance(outcome, PackagingError):
        assert outcome.code is ErrorCode.GGUF_INVALID
        return
    for found in outcome.tensors:
        assert outcome.tensor_bytes(found).nbytes == found.size_bytes
    assert all(value.encode() for value in outcome.metadata.values())


def test_a_header_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 10, 2**33))
        file.truncate(2**37)
    with pytest.raises(PackagingError, match=f"header of more than {MAX_HEADER_BYTES}"):
        open_gguf(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for path in (tmp_path, tmp_path / "missing.gguf", tmp_path / "empty.gguf"):
        with pytest.raises(PackagingError) as caught:
            open_gguf(path)
        assert caught.value.code is ErrorCode.GGUF_INVALID
        assert str(path) in caught.value.message


def test_an_open_file_reads_the_same_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(File(data=bytes(range(256)))))
    with open_gguf(path) as file:
        assert file.tensor_bytes(file.by_name["a"]).tobytes() == bytes(range(128))
        assert file.header_sha256 == parse_gguf(path.read_bytes()).header_sha256
