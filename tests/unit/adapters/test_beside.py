"""Trained weights in files beside the adapter: applied, refused with the way to convert them, or named."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.checkpoint import open_base_model

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
_BASE = {
    f"{Q}.weight": torch.zeros(2, 2),
    EMBEDDING: torch.zeros(5, 2),
    "lm_head.weight": torch.zeros(5, 2),
    NORM: torch.zeros(2),
}
TRAINED = torch.tensor([3.0, 4.0])
WEIGHT_FILES = [
    "non_lora_state_dict.bin", "non_lora_trainables.bin", "trainable_params.bin", "mm_projector.bin", "vit.bin",
    "new_embeddings.bin", "embed_tokens.bin", "pytorch_model.bin", "projector.pt", "anything.pth", "训练.ckpt",
]  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "checkpoint-10", pair(Q, [[1, 1]], [[1], [1]]))


def merged(tmp_path: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    base = open_base_model(write_base(tmp_path / "base", _BASE))
    build_overlay(open_adapter(checkpoint), base, tmp_path / "overlay", precision="base")
    overlay = Overlay.load(tmp_path / "overlay")
    return {name: overlay.apply(name, base.read_tensor(name)) for name in base.tensors}


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_pickled_weights_are_refused_and_the_command_of_the_remedy_converts_them(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    torch.save({f"base_model.model.{NORM}": TRAINED}, checkpoint / name)
    with pytest.raises(PackagingError) as caught:
        open_adapter(checkpoint)
    assert caught.value.code is ErrorCode.WEIGHTS_PICKLED
    assert name in caught.value.message
    if name != WEIGHT_FILES[0]:
        return  # the command is one and the same; to run it for each would import torch eleven times
    command = re.search(r"python (-c .*) -- or", caught.value.remedy)
    assert command
    subprocess.run([sys.executable, *shlex.split(command[1])], cwd=checkpoint, check=True)
    assert torch.equal(merged(tmp_path, checkpoint)[NORM], TRAINED)


@pytest.mark.parametrize("sub", ["adapter_model", "adapter", "default"])
def test_those_of_the_checkpoint_around_the_adapter_count_as_well(sub: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "checkpoint-10" / sub, pair(Q, [[1, 1]], [[1], [1]]))
    torch.save({NORM: TRAINED}, tmp_path / "checkpoint-10" / "non_lora_trainables.bin")
    for way in (tmp_path / "checkpoint-10", adapter):  # as prepare opens it, and as the later stages do
        with pytest.raises(PackagingError, match=r"non_lora_trainables\.bin"):
            open_adapter(way)


@pytest.mark.parametrize(
    ("file", "tensors"),
    [
        ("vit.safetensors", {f"base_model.model.{NORM}": TRAINED}),
        ("non_lora_state_dict.safetensors", {NORM: TRAINED, "model.rotary_emb.inv_freq": torch.ones(1)}),
        ("non_lora_trainables.safetensors", {f"module.base_model.model.{NORM}": TRAINED.double()}),
        ("pytorch_model.safetensors", {NORM: TRAINED, EMBEDDING: torch.zeros(5, 2)}),
        ("norm.safetensors", {"weight": TRAINED}),
    ],
)
def test_safetensors_replace_the_base_s_tensors(
    file: str, tensors: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    save_file(tensors, checkpoint / file)
    result = merged(tmp_path, checkpoint)
    assert torch.equal(result[NORM], TRAINED)
    assert torch.equal(result[f"{Q}.weight"], torch.ones(2, 2))
    assert not result[EMBEDDING].any()


def test_a_resized_embedding_beside_the_adapter_wins(checkpoint: Path, tmp_path: Path) -> None:
    for file, name in (("embed_tokens.safetensors", "weight"), ("lm_head.safetensors", "lm_head.weight")):
        save_file({name: torch.ones(6, 2)}, checkpoint / file)
    result = merged(tmp_path, checkpoint)
    assert torch.equal(result[EMBEDDING], torch.ones(6, 2))
    assert torch.equal(result["lm_head.weight"], torch.ones(6, 2))


def test_tensors_without_a_place_are_refused_naming_their_file(checkpoint: Path, tmp_path: Path) -> None:
    save_file({NORM: TRAINED, "model.mm_projector.0.weight": torch.ones(2, 2)}, checkpoint / "mm_projector.safetensors")
    with pytest.raises(PackagingError) as caught:
        merged(tmp_path, checkpoint)
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH
    assert "mm_projector.safetensors" in caught.value.message
    assert "model.mm_projector.0.weight" in caught.value.message


def test_whole_weights_beside_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    """The base's own change nothing; others may have the adapter in them already."""
    save_file(_BASE, checkpoint / "model.safetensors")
    assert torch.equal(merged(tmp_path, checkpoint)[f"{Q}.weight"], torch.ones(2, 2))
    save_file({**_BASE, f"{Q}.weight": torch.ones(2, 2)}, checkpoint / "model.safetensors")
    with pytest.raises(PackagingError) as caught:
        merged(tmp_path, checkpoint)
    assert caught.value.code is ErrorCode.ADAPTER_UNSUPPORTED
    assert "model.safetensors" in caught.value.message
    assert "merged into them already" in caught.value.message


def test_one_tensor_in_two_files_must_be_the_same(checkpoint: Path, tmp_path: Path) -> None:
    save_file({NORM: TRAINED}, checkpoint / "vit.safetensors")
    save_file({NORM: TRAINED}, checkpoint / "non_lora.safetensors")
    assert torch.equal(merged(tmp_path, checkpoint)[NORM], TRAINED)
    for other in (TRAINED + 1, TRAINED.double(), torch.ones(3)):
        save_file({NORM: other}, checkpoint / "vit.safetensors")
        with pytest.raises(PackagingError, match=r"both hold model\.norm\.weight"):
            open_adapter(checkpoint)


def write_state(checkpoint: Path) -> None:
    """What trainers leave beside an adapter to go on from, as torch writes it."""
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.bin")
    torch.save(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0).state_dict(), checkpoint / "scheduler.pt")
    torch.save({"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}, checkpoint / "scaler.pt")
    for name in ("rng_state.pth", "rng_state_0.pth"):
        torch.save({"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}, checkpoint / name)
    torch.save({"learning_rate": 1e-4}, checkpoint / "training_args.bin")
    torch.save({"epoch": 3}, checkpoint / "my_own_state.pt")  # not a tensor in it
    torch.save({"x": torch.ones(3)}, checkpoint / "adapter_model.bin")  # the same as adapter_model.safetensors
    (checkpoint / "random_states_0.pkl").write_bytes(b"\x80\x04.")


def test_the_state_of_the_run_is_known_and_not_read(checkpoint: Path, tmp_path: Path) -> None:
    write_state(checkpoint)
    adapter = open_adapter(checkpoint)
    assert adapter.left_out == ()
    assert len(adapter.tensors) == 2
    assert torch.equal(merged(tmp_path, checkpoint)[f"{Q}.weight"], torch.ones(2, 2))


@pytest.mark.parametrize("name", ["training_args.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"])
def test_a_name_alone_does_not_make_state_of_weights(name: str, checkpoint: Path) -> None:
    torch.save({NORM: torch.ones(600, 600)}, checkpoint / name)
    with pytest.raises(PackagingError, match=name) as caught:
        open_adapter(checkpoint)
    assert caught.value.code is ErrorCode.WEIGHTS_PICKLED


def test_a_pickle_is_never_opened(checkpoint: Path, tmp_path: Path) -> None:
    """Whether it is refused or known: nothing in it runs."""
    evil = b"cos\nsystem\n(S'touch %s'\ntR." % bytes(tmp_path / "ran")
    for name in ("optimizer.pt", "training_args.bin"):
        (checkpoint / name).write_bytes(evil)
    open_adapter(checkpoint)
    (checkpoint / "non_lora_trainables.bin").write_bytes(evil)
    with pytest.raises(PackagingError, match=r"non_lora_trainables\.bin"):
        open_adapter(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["value_head.safetensors", "value_head.bin", "model-Q4_K_M.gguf", "model.onnx"])
def test_weights_of_something_else_are_named(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_bytes(b"x")
    assert open_adapter(checkpoint).left_out == (name,)


def test_weights_one_directory_down_are_named(checkpoint: Path) -> None:
    for name in ("mm_projector", "global_step20", "2_Dense", "merged", "checkpoint-5", "optim"):
        (checkpoint / name).mkdir()
        save_file({"x": torch.ones(3)}, checkpoint / name / "model.safetensors")
    (checkpoint / "merged" / "config.json").write_text("{}")
    torch.save({"x": torch.ones(3)}, checkpoint / "mm_projector" / "extra.bin")
    torch.save({"epoch": 3}, checkpoint / "mm_projector" / "scheduler.bin")
    assert open_adapter(checkpoint).left_out == ("mm_projector/extra.bin", "mm_projector/model.safetensors")
