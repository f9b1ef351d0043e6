"""Whole files equal those of llama-quantize b11434, for every quant type, with and without an importance matrix."""

import json
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from tests.golden.models import MODELS, build_imatrix, build_model
from tests.golden.record_files import RECORD, digest
from worker.models.gguf.check import check_gguf
from worker.models.gguf.reader import open_gguf
from worker.models.imatrix.load import load_imatrix
from worker.models.mixture.sizes import predict_sizes
from worker.models.quantize.engine import quantize_file
from worker.models.sizes import predict_file_sizes
from worker.setting import WorkSetting

RECORDED = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden models and matrices, proven to be the ones that were recorded."""
    folder = tmp_path_factory.mktemp("golden")
    for name in MODELS:
        assert digest(build_model(folder / f"{name}.gguf", name)) == RECORDED[name]["source"]
        assert digest(build_imatrix(folder / f"{name}.imatrix.gguf", name)) == RECORDED[name]["imatrix"]
    return folder


def recorded(name: str, matrix: bool) -> dict[QuantType, list[Any]]:
    return {kind: RECORDED[name][kind.value][matrix] for kind in QuantType}


def quantize(folder: Path, name: str, matrix: bool, kinds: list[QuantType], **options: Any) -> Any:
    return quantize_file(
        folder / f"{name}.gguf",
        {kind: folder / f"{name}-{matrix}-{kind.value}.gguf" for kind in kinds},
        imatrix=load_imatrix(folder / f"{name}.imatrix.gguf") if matrix else None,
        **options,
    )


@pytest.mark.parametrize("matrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_makes_the_files_of_llama_quantize(folder: Path, name: str, matrix: bool) -> None:
    expected = {kind: entry for kind, entry in recorded(name, matrix).items() if entry}
    result = quantize(folder, name, matrix, list(expected))
    assert result.failed == {}
    made = {kind: [outcome.size_bytes, outcome.sha256] for kind, outcome in result.outcomes.items()}
    assert made == expected
    for kind, outcome in result.outcomes.items():
        assert [outcome.path.stat().st_size, digest(outcome.path)] == expected[kind]
        outcome.path.unlink()


@pytest.mark.parametrize("name", MODELS)
def test_types_that_need_a_matrix_are_refused_where_llama_quantize_refuses(folder: Path, name: str) -> None:
    with_matrix = recorded(name, True)
    refused = [kind for kind, entry in recorded(name, False).items() if entry is None and with_matrix[kind]]
    assert QuantType.IQ1_S in refused
    for kind in refused:
        assert QUANT_TYPES[kind].needs_imatrix
        with pytest.raises(PackagingError) as caught:
            quantize(folder, name, False, [QuantType.Q8_0, kind])
        assert caught.value.code is ErrorCode.IMATRIX_REQUIRED
        assert caught.value.fields["quant_type"] == kind.value
        assert caught.value.fields["tensor"].startswith("blk.0.")
    assert not list(folder.glob("*.partial"))


def test_a_type_without_one_to_fall_back_to_is_refused_where_llama_quantize_gives_up(folder: Path) -> None:
    unfit = [(name, kind) for name in MODELS for kind, entry in recorded(name, True).items() if entry is None]
    assert unfit == [("tied", QuantType.Q1_0)]
    with pytest.raises(PackagingError) as caught:
        quantize(folder, "tied", False, [QuantType.Q8_0, QuantType.Q1_0])
    assert caught.value.code is ErrorCode.QUANT_TYPE_UNFIT
    assert caught.value.fields == {
        "quant_type": "Q1_0",
        "tensor": "blk.0.attn_k.weight",
        "type": "Q1_0",
        "row_length": 288,
    }
    assert set(QuantType) - set(predict_file_sizes(folder / "tied.gguf")[1]) == {QuantType.Q1_0}
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("name", MODELS)
def test_predicted_sizes_are_the_recorded_ones(folder: Path, name: str) -> None:
    kinds = [kind for kind, entry in recorded(name, True).items() if entry]
    with open_gguf(folder / f"{name}.gguf") as source:
        predicted = predict_sizes(source.tensors, kinds, metadata=source.metadata)
        stamp = load_imatrix(folder / f"{name}.imatrix.gguf").stamp
        with_matrix = predict_sizes(source.tensors, kinds, metadata=source.metadata, stamp=stamp)
        bare = predict_sizes(source.tensors, kinds, model=None, metadata=source.metadata, has_imatrix=True)
    for kind in kinds:
        plain, weighted = RECORDED[name][kind.value]
        assert weighted[0] == with_matrix[kind].file_bytes
        assert bare[kind].data_bytes == with_matrix[kind].data_bytes
        if plain:
            assert plain[0] == predicted[kind].file_bytes
        assert predicted[kind].header_bytes + predicted[kind].data_bytes == predicted[kind].file_bytes


def test_threads_change_nothing_and_outputs_pass_the_check(folder: Path) -> None:
    kinds = [QuantType.Q4_K_M, QuantType.Q6_K, QuantType.Q4_K_S]
    result = quantize(folder, "tied", True, kinds, setting=WorkSetting(threads=1))
    for kind, outcome in result.outcomes.items():
        assert outcome.sha256 == recorded("tied", True)[kind][1]
        checked = check_gguf(outcome.path)
        assert checked.type_counts == dict(sorted(outcome.mixture_counts.items()))
        outcome.path.unlink()
    assert result.outcomes[QuantType.Q4_K_M].fallback_count == 12  # rows of 288: all but ffn_down, in two layers
    assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".journal")]
