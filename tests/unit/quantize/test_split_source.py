"""A source that lies in shards is quantized as the file that it was cut from."""

import shutil
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from tests.golden.models import build_model
from tests.golden.record_files import digest
from worker.models.quantize.local import quantize_local
from worker.models.quantize.split import split_gguf
from worker.models.sizes import predict_file_sizes


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return build_model(tmp_path / "experts.gguf", "experts")


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> list[Path]:
    (tmp_path / "cut").mkdir()
    return split_gguf(whole, 2_000_000, stem=tmp_path / "cut" / "experts")


def test_shards_are_quantized_as_the_whole(whole: Path, shards: list[Path], tmp_path: Path) -> None:
    assert len(shards) > 2
    (expected,) = quantize_local(whole, ["Q4_K_M"], tmp_path / "of_whole").files[QuantType.Q4_K_M]
    (made,) = quantize_local(shards[0], ["Q4_K_M"], tmp_path / "of_shards").files[QuantType.Q4_K_M]
    assert made.path.name == expected.path.name == "experts-Q4_K_M.gguf"
    assert digest(made.path) == digest(expected.path)


def test_sizes_are_predicted_of_the_whole(whole: Path, shards: list[Path]) -> None:
    assert predict_file_sizes(shards[0])[1] == predict_file_sizes(whole)[1]


def test_a_shard_is_refused_where_the_others_cannot_be_had(shards: list[Path], tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(PackagingError) as caught:
            quantize_local(path, ["Q8_0"], tmp_path / "out")
        assert caught.value.code is ErrorCode.GGUF_INVALID
        return caught.value.message

    assert "not the first" in refusal(shards[1])
    renamed = shards[0].with_name("renamed.gguf")
    shutil.copy(shards[0], renamed)
    assert shards[0].name in refusal(renamed).replace("renamed", "experts")
    last = shards[-1].read_bytes()
    shutil.copy(shards[1], shards[-1])
    assert "shard 1 of" in refusal(shards[0])
    shards[-1].unlink()
    assert f"{shards[-1].name}: does not exist" in refusal(shards[0])
    shards[-1].write_bytes(last[:-5000])
    assert "truncated" in refusal(shards[0])
