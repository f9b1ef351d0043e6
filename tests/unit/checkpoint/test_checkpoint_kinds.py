from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.kinds import CheckpointKind
from config.roots import Roots
from worker.models.checkpoint import classify_checkpoint, open_base_model
from worker.models.checkpoint.kinds import require_adapter

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _touch(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return directory


def _refusal(directory: Path, function: Callable[[Path], object] = classify_checkpoint) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        function(directory)
    return caught.value


@pytest.mark.parametrize("sub", ["", "adapter_model", "adapter", "default"])
def test_adapter_layouts(sub: str, tmp_path: Path) -> None:
    checkpoint = _touch(tmp_path / "checkpoint-9", "trainer_state.json", "optimizer.pt", "training_args.bin")
    _touch(checkpoint / sub, _CONFIG, _WEIGHTS)

    layout = classify_checkpoint(checkpoint)

    assert layout.kind is CheckpointKind.ADAPTER
    assert layout.directory == (checkpoint / sub if sub else checkpoint).resolve() or layout.directory == checkpoint
    assert require_adapter(checkpoint) == layout.directory


def test_an_adapter_beside_full_weights_is_an_adapter(tmp_path: Path) -> None:
    _touch(tmp_path, _CONFIG, _WEIGHTS, "model.safetensors", "config.json")

    assert classify_checkpoint(tmp_path).kind is CheckpointKind.ADAPTER


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_full_weights(name: str, tmp_path: Path) -> None:
    _touch(tmp_path, "config.json", name)

    assert classify_checkpoint(tmp_path).kind is CheckpointKind.FULL
    error = _refusal(tmp_path, require_adapter)
    assert error.code is ErrorCode.CHECKPOINT_NOT_ADAPTER
    assert "quantize_base" in error.remedy


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((_CONFIG, "adapter_model.bin"), ErrorCode.WEIGHTS_PICKLED),
        (("pytorch_model.bin", "config.json"), ErrorCode.WEIGHTS_PICKLED),
        (("pytorch_model-00001-of-00002.bin",), ErrorCode.WEIGHTS_PICKLED),
        ((_CONFIG,), ErrorCode.ADAPTER_INVALID),
        ((_WEIGHTS,), ErrorCode.ADAPTER_INVALID),
        (("trainer_state.json", "optimizer.pt"), ErrorCode.CHECKPOINT_NOT_FOUND),
        ((), ErrorCode.CHECKPOINT_NOT_FOUND),
    ],
)
def test_what_is_neither(names: tuple[Any, ...] | tuple[str, ...], code: ErrorCode, tmp_path: Path) -> None:
    error = _refusal(_touch(tmp_path, *names))

    assert error.code is code
    assert str(tmp_path) in error.message


def test_missing_directory(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "checkpoint-1").code is ErrorCode.CHECKPOINT_NOT_FOUND
    (tmp_path / "file").touch()
    assert _refusal(tmp_path / "file").code is ErrorCode.CHECKPOINT_NOT_FOUND


def test_sub_directory_that_leads_out(tmp_path: Path) -> None:
    outside = _touch(tmp_path / "outside", _CONFIG, _WEIGHTS)
    checkpoint = _touch(tmp_path / "checkpoint-1", "trainer_state.json")
    (checkpoint / "adapter_model").symlink_to(outside)

    assert _refusal(checkpoint).code is ErrorCode.PATH_NOT_ALLOWED
    assert classify_checkpoint(checkpoint, allowed_roots=Roots.only(outside)).directory == outside.resolve()


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (("global_step9/x.pt", "zero_to_fp32.py"), "python {0}/zero_to_fp32.py {0} {0} --safe_serialization"),
        (("pytorch_model_fsdp_0/__0_0.distcp",), "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}"),
    ],
)
def test_shards_alone_are_refused_with_the_command_that_joins_them(
    names: tuple[str, ...], command: str, tmp_path: Path
) -> None:
    directory = _touch(tmp_path / "checkpoint-9", "config.json", "rng_state_0.pth", *names)
    for function in (classify_checkpoint, open_base_model):
        (directory / "config.json").write_text("{}")
        error = _refusal(directory, function)
        assert error.remedy == f"Consolidate them: {command.format(directory)}."
