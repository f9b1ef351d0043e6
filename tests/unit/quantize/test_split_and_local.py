"""Shards equal those of llama-gguf-split, and the local command's function minds names and files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from tests.golden.models import build_model
from tests.golden.record_files import digest
from tests.unit.quantize.sources import save_source
from worker.models.gguf.check import check_gguf
from worker.models.gguf.metadata import get_value, uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.quantize.local import LocalOptions, parse_quant_types, quantize_local
from worker.models.quantize.split import split_gguf

RECORDED_SHARDS = {
    "dense": [
        "23e2f90ec8e99071f213632d3a1061b6935917e8e0af98e9d2915d99e5615620",
        "0bd51f6fcfe4d48f0c90c579f80e927aba6766c4a0a70c20943ee1fa033ac853",
        "0c5dea0a40a944913aaa83c9268fe15aea4c7ae7a9f53073b9ec73f7578adfe4",
    ],
    "experts": [
        "115387271f620d77211c00c471c338217c93194fadcfbf6dafcf013a8ef6e15b",
        "acd33d503ad38e16f922c8e2a71d7eb4a987dae117e840f9cb8b3f646da27d60",
        "0f31fd603462f05ecf7a915f6e8474d6a02e92465b2579444acc9b043192ada2",
        "6699d960a62fcbb6f6af18aad968702cb805b4fd6fdc76a27fb96f11b040f44c",
        "e598724e8858d6d934d88fce4c7ccc02e13d9caca8c96c3600a6e9fbcb5323ab",
        "f8742cbc160d4a6bc5acc444e419dd1929fbda4f2e73064db1513b639110f935",
        "2fbc95c183445377495be86816106d6b554dac8997966883a4832ae0cbe66d9e",
        "2fc95b6164375c0335ec5a7e5babed47c00ecc9edc787c3ea18864cce0266eac",
        "3ec5e24c01c1942daaece687cdca8080f031beea4a56db1e1b299a28a39133b2",
    ],
}
"""What ``llama-gguf-split --split-max-size 1M`` of llama.cpp b11434 makes of two golden models."""


@pytest.mark.parametrize("name", RECORDED_SHARDS)
def test_shards_are_those_of_llama_gguf_split(tmp_path: Path, name: str) -> None:
    source = build_model(tmp_path / f"{name}.gguf", name)
    shards = split_gguf(source, 1_000_000)
    count = len(RECORDED_SHARDS[name])
    assert [path.name for path in shards] == [f"{name}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    assert [digest(path) for path in shards] == RECORDED_SHARDS[name]
    assert source.exists()


def test_shards_hold_everything_once_and_the_keys_to_find_it(tmp_path: Path) -> None:
    source = build_model(tmp_path / "dense.gguf", "dense", extra={"general.alignment": uint32_value(64)})
    shards = split_gguf(source, 600_000, stem=tmp_path / "cut")
    found: dict[Any, Any] = {}
    with open_gguf(source) as whole:
        for index, path in enumerate(shards):
            check_gguf(path)
            with open_gguf(path) as shard:
                assert shard.alignment == 64
                keys = {key: get_value(shard.metadata, f"split.{key}") for key in ("no", "count", "tensors.count")}
                assert keys == {"no": index, "count": len(shards), "tensors.count": len(whole.tensors)}
                assert ("tokenizer.ggml.tokens" in shard.metadata) == (index == 0)
                found |= {tensor.name: shard.tensor_bytes(tensor).tobytes() for tensor in shard.tensors}
        assert found == {tensor.name: whole.tensor_bytes(tensor).tobytes() for tensor in whole.tensors}


def test_the_usual_alignment_is_not_told_to_later_shards(tmp_path: Path) -> None:
    """The tool writes nothing but ``split.*`` into them; only another alignment must be known to read them."""
    plain = build_model(tmp_path / "plain.gguf", "dense")
    told = build_model(tmp_path / "told.gguf", "dense", extra={"general.alignment": uint32_value(32)})
    for left, right in zip(split_gguf(plain, 1_000_000)[1:], split_gguf(told, 1_000_000)[1:], strict=True):
        assert digest(left) == digest(right)


def test_a_file_within_the_limit_stays_whole(tmp_path: Path) -> None:
    source = build_model(tmp_path / "dense.gguf", "dense")
    assert split_gguf(source, 10_000_000) == [source]
    assert list(tmp_path.iterdir()) == [source]


def test_a_tensor_beyond_the_limit_has_a_shard_of_its_own(tmp_path: Path) -> None:
    sizes = {"a": 900, "b": 10, "c": 10, "d": 900, "e": 10}
    source = save_source(tmp_path / "m.gguf", {name: np.zeros(size, np.float32) for name, size in sizes.items()})
    held = []
    for path in split_gguf(source, 1000):
        with open_gguf(path) as shard:
            held.append("".join(tensor.name for tensor in shard.tensors))
    assert held == ["a", "bc", "d", "e"]


def test_shards_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    source = build_model(tmp_path / "dense.gguf", "dense")
    with pytest.raises(PackagingError) as caught:
        split_gguf(source, 500_000, stem=tmp_path / "missing" / "m")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert list(tmp_path.iterdir()) == [source]


def test_more_shards_than_can_be_counted_are_refused(tmp_path: Path) -> None:
    tensors = {f"t{index}": np.zeros(1, np.float32) for index in range(65_537)}
    source = save_source(tmp_path / "m.gguf", tensors)
    with pytest.raises(PackagingError, match="65537 shards") as caught:
        split_gguf(source, 32)
    assert caught.value.code is ErrorCode.REQUEST_INVALID


def test_local_files_are_named_for_source_and_type(tied: Path, tmp_path: Path) -> None:
    made = quantize_local(tied, ["q8_0", " Q4_0"], tmp_path / "new" / "folder")
    assert {kind.value: [file.path.name for file in files] for kind, files in made.files.items()} == {
        "Q8_0": ["tied-Q8_0.gguf"],
        "Q4_0": ["tied-Q4_0.gguf"],
    }
    (file,) = made.files[QuantType.Q8_0]
    assert digest(file.path) == file.sha256 == made.result.outcomes[QuantType.Q8_0].sha256


def test_local_files_are_not_replaced_unasked(tied: Path, tmp_path: Path) -> None:
    (tmp_path / "tied-Q8_0.gguf").write_text("mine")
    with pytest.raises(PackagingError) as caught:
        quantize_local(tied, ["Q4_0", "Q8_0"], tmp_path)
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS
    assert [path.name for path in tmp_path.iterdir()] == ["tied-Q8_0.gguf"]
    quantize_local(tied, ["Q8_0"], tmp_path, options=LocalOptions(overwrite=True))
    check_gguf(tmp_path / "tied-Q8_0.gguf")


def test_local_files_beyond_a_limit_are_split(tied: Path, tmp_path: Path) -> None:
    made = quantize_local(tied, ["Q8_0", "Q2_K"], tmp_path, options=LocalOptions(split_max_bytes=1_200_000))
    assert [file.path.name for file in made.files[QuantType.Q8_0]] == [
        "tied-Q8_0-00001-of-00002.gguf",
        "tied-Q8_0-00002-of-00002.gguf",
    ]
    assert [file.path.name for file in made.files[QuantType.Q2_K]] == ["tied-Q2_K.gguf"]
    for files in made.files.values():
        assert [(digest(file.path), file.path.stat().st_size) for file in files] == [
            (file.sha256, file.size_bytes) for file in files
        ]
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(PackagingError) as caught:
        quantize_local(tied, ["Q8_0"], tmp_path, options=LocalOptions(split_max_bytes=1_200_000))
    assert caught.value.code is ErrorCode.OUTPUT_EXISTS


def test_a_file_that_cannot_be_split_is_kept_whole_and_the_others_are_split(tied: Path, tmp_path: Path) -> None:
    (tmp_path / "tied-Q8_0-00002-of-00002.gguf").mkdir()
    made = quantize_local(
        tied, ["Q8_0", "Q6_K"], tmp_path, options=LocalOptions(overwrite=True, split_max_bytes=1_200_000)
    )
    assert made.failed[QuantType.Q8_0].code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert list(made.files) == [QuantType.Q6_K]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "tied-Q6_K-00001-of-00002.gguf",
        "tied-Q6_K-00002-of-00002.gguf",
        "tied-Q8_0.gguf",
    ]


@pytest.mark.parametrize(
    ("names", "code", "fact"),
    [
        ([], ErrorCode.QUANT_TYPES_EMPTY, ""),
        (["Q4_K_M", "q4_k_m"], ErrorCode.QUANT_TYPE_DUPLICATE, "Q4_K_M"),
        (["Q4KM"], ErrorCode.QUANT_TYPE_UNKNOWN, "Q4_K_M"),
        (["IQ2_XSS"], ErrorCode.QUANT_TYPE_UNKNOWN, "IQ2_X"),
    ],
)
def test_types_that_cannot_be_meant_are_refused(names: list[str], code: ErrorCode, fact: str) -> None:
    with pytest.raises(PackagingError) as caught:
        parse_quant_types(names)
    assert caught.value.code is code
    assert fact in caught.value.message


def test_a_local_file_that_is_quantized_already_is_refused_unless_allowed(tied: Path, tmp_path: Path) -> None:
    (first,) = quantize_local(tied, ["Q8_0"], tmp_path).files[QuantType.Q8_0]
    with pytest.raises(PackagingError) as caught:
        quantize_local(first.path, ["Q4_0"], tmp_path)
    assert caught.value.code is ErrorCode.GGUF_ALREADY_QUANTIZED
    made = quantize_local(first.path, ["Q4_0"], tmp_path, options=LocalOptions(allow_requantize=True))
    assert [file.path.name for file in made.files[QuantType.Q4_0]] == ["tied-Q8_0-Q4_0.gguf"]


def test_a_refused_local_call_leaves_no_directory_behind(tied: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tied.read_bytes()[:1000])
    for directory in ("there", "new", "there/new/folder"):
        with pytest.raises(PackagingError) as caught:
            quantize_local(damaged, ["Q8_0"], tmp_path / directory)
        assert caught.value.code is ErrorCode.GGUF_INVALID
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["damaged.gguf", "there"]


def test_names_that_no_file_system_takes_are_refused(tied: Path, tmp_path: Path) -> None:
    for source, directory, code in (
        (tied, tmp_path / ("x" * 300), ErrorCode.OUTPUT_DIR_NOT_WRITABLE),
        (tmp_path / ("x" * 300), tmp_path / "new", ErrorCode.GGUF_INVALID),
    ):
        with pytest.raises(PackagingError) as caught:
            quantize_local(source, ["Q8_0"], directory)
        assert caught.value.code is code
    assert list(tmp_path.iterdir()) == []
