"""The overlay itself: its arithmetic on numbers chosen by hand, its file, and that applying it is pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import cast_adapter_dtype
from transformers.pytorch_utils import Conv1D

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from tests.unit.adapters.peft_reference import differences, overlay_merge, save_adapter
from worker.models.adapters import Overlay, build_overlay, low_rank, open_adapter
from worker.models.adapters.low_rank import LoraUpdate
from worker.models.adapters.updates import Precision
from worker.models.checkpoint import open_base_model

_WEIGHT = f"{Q}.weight"


def _overlay(
    tmp_path: Path,
    weight: torch.Tensor,
    adapter_tensors: dict[str, torch.Tensor],
    precision: Precision = "base",
    **config: Any,
) -> Overlay:
    base = open_base_model(write_base(tmp_path / "base", {_WEIGHT: weight}))
    adapter = open_adapter(write_adapter(tmp_path / "adapter", adapter_tensors, **config))
    build_overlay(adapter, base, tmp_path / "overlay.safetensors", precision=precision)
    return Overlay.load(tmp_path / "overlay.safetensors")


def test_the_low_rank_product_is_scaled_and_added(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    overlay = _overlay(tmp_path, weight, pair(Q, [[1, 2]], [[1], [0], [-1]]), lora_alpha=3)

    merged = overlay.apply(_WEIGHT, weight)

    assert merged.tolist() == [[4.0, 6.0], [0.0, 1.0], [-3.0, -6.0]]


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    weight = torch.zeros(1, 2)
    factors = pair(Q, [[1, 0], [0, 1], [0, 0], [0, 0]], [[1, 1, 1, 1]])
    overlay = _overlay(tmp_path, weight, factors, r=4, lora_alpha=8, use_rslora=True)

    assert overlay.apply(_WEIGHT, weight).tolist() == [[4.0, 4.0]]


def test_small_updates_survive_in_float32_only(tmp_path: Path) -> None:
    """Half a unit in the last place of bfloat16 at 1.0 is 2**-8; an update of 2**-10 is lost by rounding."""
    weight = torch.ones(1, 1, dtype=torch.bfloat16)
    factors = pair(Q, [[2**-10]], [[1]])

    rounded = _overlay(tmp_path / "base", weight, factors).apply(_WEIGHT, weight)
    kept = _overlay(tmp_path / "f32", weight, factors, precision="f32").apply(_WEIGHT, weight)

    assert (rounded.dtype, rounded.item()) == (torch.bfloat16, 1.0)
    assert (kept.dtype, kept.item()) == (torch.float32, 1 + 2**-10)


def test_float32_precision_rounds_to_what_a_float32_merge_gives(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True, "modules_to_save": ["lm_head"]}
    base = tiny_base("llama", "bfloat16")
    adapter = save_adapter(base, LoraConfig(r=4, **settings), tmp_path / "adapter")
    wide = write_base(
        tmp_path / "wide",
        {name: open_base_model(base).read_tensor(name).float() for name in open_base_model(base).tensors},
    )

    expected = overlay_merge(wide, adapter, tmp_path / "wide.safetensors")
    actual = overlay_merge(base, adapter, tmp_path / "narrow.safetensors", precision="f32")

    assert differences(expected, {name: value.float() for name, value in actual.items()}) == []


def test_apply_writes_to_nothing_and_ignores_what_it_does_not_know(tmp_path: Path) -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    overlay = _overlay(tmp_path, weight, pair(Q, [[1, 1]], [[1], [1]]))

    first = overlay.apply(_WEIGHT, weight)
    second = overlay.apply(_WEIGHT, weight)

    assert torch.equal(weight, torch.ones(2, 2))
    assert torch.equal(first, second)
    assert first.data_ptr() != weight.data_ptr()
    assert overlay.apply("model.norm.weight", weight) is weight


def test_threads_get_the_same_bits(tiny_base: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_base("llama", "bfloat16")
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=True)
    adapter = save_adapter(base, config, tmp_path / "adapter")
    expected = overlay_merge(base, adapter, tmp_path / "overlay.safetensors")
    overlay, model = Overlay.load(tmp_path / "overlay.safetensors"), open_base_model(base)

    with ThreadPoolExecutor(8) as pool:
        names = sorted(overlay.names()) * 8
        merged = list(pool.map(lambda name: overlay.apply(name, model.read_tensor(name)), names))

    assert all(torch.equal(value, expected[name]) for name, value in zip(names, merged, strict=True))


@pytest.mark.parametrize(("out", "width", "rank"), [(512, 300, 16), (1000, 257, 33), (96, 2048, 128)])
def test_bits_do_not_depend_on_the_number_of_threads(out: int, width: int, rank: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weight = torch.randn(out, width).bfloat16()
    factors = {f"{Q}.lora_A.weight": torch.randn(rank, width), f"{Q}.lora_B.weight": torch.randn(out, rank)}
    overlay = _overlay(tmp_path, weight, factors, r=rank)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(overlay.apply(_WEIGHT, weight))
    finally:
        torch.set_num_threads(threads)

    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
def test_weights_larger_than_a_block_equal_peft(kind: str, use_dora: bool, dtype: torch.dtype) -> None:
    """The weight is worked through in blocks of rows; PEFT takes it whole."""
    torch.manual_seed(2)
    rows, columns, rank = 700, 1030, 12
    modules: dict[str, Callable[[], torch.nn.Module]] = {
        "linear": lambda: torch.nn.Linear(columns, rows, bias=False),
        "conv1d": lambda: Conv1D(columns, rows),
        "embedding": lambda: torch.nn.Embedding(rows, columns),
    }
    module: Any = modules[kind]().to(dtype)
    torch.nn.init.normal_(module.weight)
    weight = module.weight.detach().clone()
    config = LoraConfig(r=rank, lora_alpha=7, target_modules=["m"], use_dora=use_dora, fan_in_fan_out=kind == "conv1d")
    layer = inject_adapter_in_model(config, torch.nn.ModuleDict({"m": module}))["m"]
    cast_adapter_dtype(layer, "default")
    embedding = kind == "embedding"
    a = (layer.lora_embedding_A if embedding else layer.lora_A)["default"]
    b = (layer.lora_embedding_B if embedding else layer.lora_B)["default"]
    a, b = (part if embedding else part.weight for part in (a, b))
    with torch.no_grad():
        a.normal_()
        b.normal_()
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().clone() if use_dora else None
    style: Literal["embedding", "linear"] = "embedding" if embedding else "linear"
    update = LoraUpdate(a.detach(), b.detach(), 7 / rank, style, kind == "conv1d", magnitude)
    assert weight.numel() > 2 * low_rank._BLOCK_ELEMENTS

    merged = update.apply(weight, "base")
    layer.merge()

    assert torch.equal(merged, layer.get_base_layer().weight)


def test_a_tensor_without_data_gives_shape_and_dtype(tmp_path: Path) -> None:
    weight = torch.ones(3, 2, dtype=torch.float16)
    factors = pair(Q, [[1, 1]], [[1], [1], [1]])
    probe = torch.empty(3, 2, dtype=torch.float16, device="meta")

    dtypes: dict[Precision, torch.dtype] = {"base": torch.float16, "f32": torch.float32}
    for precision, dtype in dtypes.items():
        described = _overlay(tmp_path / precision, weight, factors, precision).apply(_WEIGHT, probe)
        assert (described.device.type, described.dtype, described.shape) == ("meta", dtype, (3, 2))


def test_the_file_is_small_and_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(64, 64)
    base = open_base_model(write_base(tmp_path / "base", {_WEIGHT: weight}))
    adapter = open_adapter(write_adapter(tmp_path / "adapter", pair(Q, [[1.0] * 64], [[1.0]] * 64)))
    out = tmp_path / "out" / "overlay.safetensors"
    out.parent.mkdir()

    summary = build_overlay(adapter, base, out, precision="base")
    assert summary.size_bytes == out.stat().st_size < weight.numel() * 4
    assert (summary.touched, summary.steps, summary.added) == (1, {"lora": 1}, ())

    out.unlink()
    out.mkdir()  # the rename at the end cannot succeed
    with pytest.raises(PackagingError, match="overlay") as caught:
        build_overlay(adapter, base, out, precision="base")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE
    assert [path.name for path in out.parent.iterdir()] == ["overlay.safetensors"]


def test_progress_is_reported_module_by_module(tmp_path: Path) -> None:
    other = Q.replace("q_proj", "k_proj")
    base = open_base_model(
        write_base(tmp_path / "base", {_WEIGHT: torch.zeros(2, 2), f"{other}.weight": torch.zeros(2, 2)})
    )
    tensors = {**pair(Q, [[1, 1]], [[1], [1]]), **pair(other, [[1, 1]], [[1], [1]])}
    adapter = open_adapter(write_adapter(tmp_path / "adapter", tensors))
    seen = []

    build_overlay(
        adapter,
        base,
        tmp_path / "o",
        precision="base",
        report=lambda progress: seen.append((progress.done, progress.total)),
    )

    assert seen == [(1, 2), (2, 2)]


def test_an_overlay_of_another_base_is_refused(tmp_path: Path) -> None:
    overlay = _overlay(tmp_path, torch.zeros(2, 2), pair(Q, [[1, 1]], [[1], [1]]))
    overlay.check_base(open_base_model(tmp_path / "base"))
    other = open_base_model(write_base(tmp_path / "other", {_WEIGHT: torch.zeros(2, 3)}))

    with pytest.raises(PackagingError) as caught:
        overlay.check_base(other)
    assert caught.value.code is ErrorCode.ADAPTER_MISMATCH


@pytest.mark.parametrize("damage", ["missing", "cut short", "not an overlay", "steps gone"])
def test_a_damaged_overlay_is_a_lost_artifact(damage: str, tmp_path: Path) -> None:
    _overlay(tmp_path, torch.zeros(2, 2), pair(Q, [[1, 1]], [[1], [1]]))
    path = tmp_path / "overlay.safetensors"
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(raw[:-4])
    elif damage == "not an overlay":
        path.write_bytes((tmp_path / "base" / "model.safetensors").read_bytes())
    else:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        del header["__metadata__"]["steps"]
        changed = json.dumps(header).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + raw[8 + length :])

    with pytest.raises(PackagingError) as caught:
        Overlay.load(path)
    assert caught.value.code is ErrorCode.ARTIFACT_LOST


def test_an_adapter_with_thousands_of_tensors_needs_few_file_descriptors(tmp_path: Path) -> None:
    """A mapping per tensor would need one descriptor each."""
    import os
    import resource

    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(600)]
    base = open_base_model(write_base(tmp_path / "base", {f"{name}.weight": torch.zeros(2, 2) for name in modules}))
    tensors = {key: value for name in modules for key, value in pair(name, [[1, 1]], [[1], [1]]).items()}
    adapter = open_adapter(write_adapter(tmp_path / "adapter", tensors))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # room for far fewer than one per tensor, beside what the test run itself has open
    room = len(os.listdir("/proc/self/fd")) + 200  # noqa: PTH208  descriptors, not files
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, limits[1]))
    try:
        build_overlay(adapter, base, tmp_path / "overlay", precision="base")
        assert len(Overlay.load(tmp_path / "overlay").names()) == 600
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
