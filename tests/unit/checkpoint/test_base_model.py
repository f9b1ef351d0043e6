"""Base model directories: what is read, what is refused, and that nothing outside is touched."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.unit.checkpoint.raw_files import entry, write_model, write_raw, write_shard, write_sharded
from worker.models.checkpoint import open_base_model

_INDEX = "model.safetensors.index.json"


def _refusal(directory: Path, **options: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        open_base_model(directory, **options)
    return caught.value


def test_tensors_come_back_as_written(tmp_path: Path) -> None:
    write_model(tmp_path)
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "wide": torch.randn(4).double(),
        "count": torch.arange(3),
        "small": torch.randn(7).to(torch.float8_e4m3fn),
        "flag": torch.tensor([True, False]),
        "nothing": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "model.safetensors")

    model = open_base_model(tmp_path)

    for name, tensor in tensors.items():
        read = model.read_tensor(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.double(), tensor.double())


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    """A header of odd length leaves every tensor at an odd address."""
    write_model(tmp_path)
    value = torch.tensor([1.5, -2.0])
    raw = json.dumps({"a": entry([2], 0, 8)}).encode()
    raw += b" " * (7 - len(raw) % 8)
    write_raw(tmp_path / "model.safetensors", raw, value.numpy().tobytes())

    assert open_base_model(tmp_path).read_tensor("a").tolist() == [1.5, -2.0]


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    model = open_base_model(write_model(tmp_path))
    before = (tmp_path / "model.safetensors").read_bytes()

    model.read_tensor("a").add_(1)

    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert model.read_tensor("a").item() == 0


def test_mappings_end_with_their_tensors(tmp_path: Path) -> None:
    write_model(tmp_path)
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    model = open_base_model(tmp_path)
    path = str(tmp_path / "model.safetensors")

    def mapped() -> bool:
        return path in Path("/proc/self/maps").read_text()

    tensor = model.read_tensor("a")
    assert mapped()
    del tensor
    gc.collect()
    assert not mapped()


def test_threads_read_at_once(tmp_path: Path) -> None:
    names = [f"t{index}" for index in range(50)]
    write_model(tmp_path)
    save_file(
        {name: torch.full((100,), float(index)) for index, name in enumerate(names)}, tmp_path / "model.safetensors"
    )
    model = open_base_model(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda name: model.read_tensor(name).sum().item(), names * 4))

    assert values == [100.0 * index for index in range(50)] * 4


def test_unknown_tensor(tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        open_base_model(write_model(tmp_path)).read_tensor("c")
    assert caught.value.code is ErrorCode.BASE_MODEL_INVALID


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    model = open_base_model(write_model(tmp_path))
    write_shard(tmp_path / "model.safetensors", ["a", "b", "c"])

    with pytest.raises(PackagingError, match="changed"):
        model.read_tensor("a")


def test_sharded(tmp_path: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    model = open_base_model(write_sharded(tmp_path, weight_map))

    assert {name: e.file.name for name, e in model.tensors.items()} == weight_map
    assert model.size_bytes == 8


def test_shards_without_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    (tmp_path / _INDEX).unlink()
    assert set(open_base_model(tmp_path).tensors) == {"a", "b"}

    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    error = _refusal(tmp_path)
    assert error.code is ErrorCode.WEIGHTS_SHARD_MISSING
    assert error.fields == {"shard": "model-00001-of-00002.safetensors"}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    (tmp_path / "model-00002-of-00002.safetensors").unlink()

    error = _refusal(tmp_path)

    assert error.code is ErrorCode.WEIGHTS_SHARD_MISSING
    assert "model-00002-of-00002.safetensors" in error.message


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "a/../../outside.safetensors", "a\\b.safetensors"]
)
def test_shard_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "outside.safetensors", ["a"])
    directory = write_sharded(tmp_path / "base", {"a": name})

    assert _refusal(directory).code is ErrorCode.BASE_MODEL_INVALID


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {}},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "model.bin"}},
        {"weight_map": {"a": "config.json"}},
        {"weight_map": {"absent": "model-00001-of-00001.safetensors"}},
    ],
)
def test_indexes_that_make_no_sense(index: dict[str, Any], tmp_path: Path) -> None:
    write_sharded(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    (tmp_path / _INDEX).write_text(json.dumps(index))

    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID


def test_symlinks_lead_only_into_allowed_roots(tmp_path: Path) -> None:
    """The layout of the Hub's cache: snapshots are links to blobs beside them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    write_model(blobs)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")

    assert _refusal(snapshot).code is ErrorCode.PATH_NOT_ALLOWED
    assert _refusal(snapshot, allowed_roots=Roots.only(tmp_path / "elsewhere")).code is ErrorCode.PATH_NOT_ALLOWED
    assert set(open_base_model(snapshot, allowed_roots=Roots.only(tmp_path)).tensors) == {"a", "b"}


def test_symlink_to_itself(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")

    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID


def test_missing_parts(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "absent").code is ErrorCode.BASE_MODEL_NOT_FOUND
    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID
    (tmp_path / "config.json").write_text("{}")
    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID

    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch mark'\ntR.")
    error = _refusal(tmp_path)
    assert error.code is ErrorCode.WEIGHTS_PICKLED
    assert "pytorch_model.bin" in error.message


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "{" + '"x": {' * 50_000])
def test_configs_that_are_no_object(content: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").write_text(content)

    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_INVALID


def test_config_of_absurd_size(tmp_path: Path) -> None:
    write_model(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(65 * 1024 * 1024)

    error = _refusal(tmp_path)
    assert error.code is ErrorCode.BASE_MODEL_INVALID
    assert "at most" in error.message


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_quantized_by_config(quantization: dict[str, Any], method: str, tmp_path: Path) -> None:
    for nested in (False, True):
        config = {"quantization_config": quantization}
        write_model(tmp_path, config={"text_config": config} if nested else config)
        for allowed in (False, True):
            error = _refusal(tmp_path, as_stored=allowed)
            assert error.code is ErrorCode.BASE_MODEL_QUANTIZED
            assert error.fields == {"quant_method": method}


@pytest.mark.parametrize("method", ["modelopt", "bitnet"])
def test_quantized_but_turned_back_by_the_converter(method: str, tmp_path: Path) -> None:
    write_model(tmp_path, config={"quantization_config": {"quant_method": method}})

    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_QUANTIZED
    assert open_base_model(tmp_path, as_stored=True).quant_method == method


@pytest.mark.parametrize(
    "name", ["model.layers.0.q_proj.weight.SCB", "q.weight.absmax", "model.layers.0.q_proj.qzeros"]
)
def test_quantized_by_its_tensors_alone(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, names=("a", name))

    assert _refusal(tmp_path).code is ErrorCode.BASE_MODEL_QUANTIZED


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv", "_scale_2"])
def test_scales_that_no_config_explains(suffix: str, tmp_path: Path) -> None:
    """A "16-bit" save of an FP8 model: weights, scales, and nothing that says how to read them."""
    names = ("model.norm.weight", "model.layers.0.q_proj.weight", f"model.layers.0.q_proj.weight{suffix}")
    write_model(tmp_path, names=names)
    for allowed in (False, True):
        error = _refusal(tmp_path, as_stored=allowed)
        assert error.code is ErrorCode.BASE_MODEL_QUANTIZED
        assert names[2] in error.message
        assert "no quantization_config" in error.message
        assert "quantization_config that the weights were saved with" in error.remedy
    # a scale of another thing's, or one that the config explains
    write_model(tmp_path, names=("model.norm.weight", f"model.layers.0.q_proj.weight{suffix}", "x.weight_scales"))
    assert open_base_model(tmp_path).quant_method is None
    write_model(tmp_path, names=names, config={"quantization_config": {"quant_method": "fp8"}})
    assert open_base_model(tmp_path, as_stored=True).quant_method == "fp8"


def test_cut_short(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])

    assert _refusal(tmp_path).code is ErrorCode.WEIGHTS_TRUNCATED


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_shard(tmp_path / "model-a.safetensors", ["a"])
    write_shard(tmp_path / "model-b.safetensors", ["a"])

    error = _refusal(tmp_path)
    assert error.code is ErrorCode.BASE_MODEL_INVALID
    assert "two files" in error.message


def test_fingerprint_follows_config_and_headers_not_the_place(tmp_path: Path) -> None:
    first = open_base_model(write_model(tmp_path / "one"))
    copy = open_base_model(write_model(tmp_path / "two"))
    other = open_base_model(write_model(tmp_path / "three", config={"model_type": "qwen2"}))
    more = open_base_model(write_model(tmp_path / "four", names=("a", "c")))

    assert first.fingerprint == copy.fingerprint
    assert len({first.fingerprint, other.fingerprint, more.fingerprint}) == 3


def test_text_config(tmp_path: Path) -> None:
    plain = open_base_model(write_model(tmp_path / "one", config={"model_type": "llama"}))
    nested = open_base_model(
        write_model(tmp_path / "two", config={"model_type": "x", "text_config": {"vocab_size": 3}})
    )

    assert (plain.model_type, plain.text_config["model_type"]) == ("llama", "llama")
    assert nested.text_config == {"vocab_size": 3}
    assert open_base_model(write_model(tmp_path / "three", config={"model_type": 3})).model_type == ""


def test_no_code_of_the_directory_runs(tmp_path: Path) -> None:
    """`auto_map` names a module beside the weights that would leave a mark."""
    directory = write_model(
        tmp_path / "base",
        config={"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    )
    mark = tmp_path / "mark"
    (directory / "evil.py").write_text(f"open({str(mark)!r}, 'w')")

    from worker.models.adapters.module_tree import read_module_tree

    read_module_tree(open_base_model(directory))
    assert not mark.exists()
