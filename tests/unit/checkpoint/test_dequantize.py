"""Quantized checkpoints are read as the plain weights that transformers makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from api_client.contract.errors import ErrorCode, PackagingError
from tests.quantized import WEIGHTS, float_quantized, fp8, in_blocks, int8, mxfp4, nf4
from worker.models.checkpoint import BaseModel, open_base_model
from worker.models.checkpoint.bitsandbytes import FP4, NF4
from worker.models.checkpoint.headers import DTYPE_BITS, TensorEntry
from worker.models.checkpoint.unpacking import Unpacking

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
Make = Callable[[Path, Path], Path]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Some weights of a model, none of them square, one with odd edges."""
    generator = torch.Generator().manual_seed(1)
    directory = tmp_path / "plain"
    directory.mkdir()
    weights = {
        Q: torch.randn(64, 96, generator=generator).bfloat16(),
        "model.layers.0.mlp.up_proj.weight": torch.randn(72, 100, generator=generator).bfloat16() * 0.1,
        NORM: torch.randn(64, generator=generator).bfloat16(),
    }
    save_file(weights, directory / WEIGHTS)
    config = {"model_type": "llama", "dtype": "bfloat16", "num_hidden_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def experts(directory: Path) -> Path:
    directory.mkdir()
    weights = {
        "model.layers.0.mlp.experts.gate_up_proj": torch.zeros(3, 64, 80).bfloat16(),
        "model.layers.0.mlp.experts.gate_up_proj_bias": torch.ones(3, 80).bfloat16(),
    }
    save_file(weights, directory / WEIGHTS)
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "torch_dtype": "bfloat16"}))
    return directory


def read(model: BaseModel) -> dict[str, torch.Tensor]:
    return {name: model.read_tensor(name) for name in model.tensors}


def operation() -> Any:
    """transformers' own, which asks its quantizer nothing."""
    make: Callable[..., Any] = Fp8Dequantize
    return make(None)


def by_transformers(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    result: torch.Tensor = operation()._dequantize_one(weight, scale, dtype)
    return result


def assert_as_announced(model: BaseModel) -> None:
    """Entries say the shape and dtype that reading gives, so that files are planned without reading."""
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    for name, entry in model.tensors.items():
        tensor = model.read_tensor(name)
        assert (names[entry.dtype], entry.shape) == (tensor.dtype, tuple(tensor.shape)), name
        assert entry.size_bytes == tensor.numel() * tensor.itemsize


@pytest.mark.parametrize("block", [(16, 32), None])
def test_fp8_is_what_transformers_makes_of_it(block: tuple[int, int] | None, plain: Path, tmp_path: Path) -> None:
    directory = fp8(plain, tmp_path / "fp8", block)
    stored, model = load_file(directory / WEIGHTS), open_base_model(directory)
    theirs = by_transformers(stored[Q], stored[f"{Q}_scale_inv"].reshape(-1, 3 if block else 1))
    ours = read(model)
    assert torch.equal(ours[Q], theirs.bfloat16())
    assert ours.keys() == load_file(plain / WEIGHTS).keys()
    assert torch.equal(ours[NORM], stored[NORM])
    assert (model.quant_method, model.made_plain_from) == (None, "fp8")
    assert "quantization_config" not in model.config
    assert_as_announced(model)


def test_last_blocks_of_fp8_reach_over_the_edge(plain: Path, tmp_path: Path) -> None:
    """72 x 100 in blocks of 16 x 32: half a block below, an eighth to the right. transformers refuses such weights."""
    name = "model.layers.0.mlp.up_proj.weight"
    stored = load_file(fp8(plain, tmp_path / "fp8") / WEIGHTS)
    weight, scale = stored[name].float(), stored[f"{name}_scale_inv"]
    assert scale.shape == (5, 4)
    by_hand = torch.stack(
        [torch.stack([weight[i, j] * scale[i // 16, j // 32] for j in range(100)]) for i in range(72)]
    )
    assert torch.equal(open_base_model(tmp_path / "fp8").read_tensor(name), by_hand.bfloat16())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_scales_that_are_exponents(dtype: torch.dtype, plain: Path, tmp_path: Path) -> None:
    directory = fp8(plain, tmp_path / "fp8")
    stored = load_file(directory / WEIGHTS)
    exponents = torch.randint(118, 128, stored[f"{Q}_scale_inv"].shape, dtype=torch.uint8)
    stored[f"{Q}_scale_inv"] = exponents.view(dtype)
    save_file(stored, directory / WEIGHTS)
    theirs = by_transformers(stored[Q], stored[f"{Q}_scale_inv"])
    assert torch.equal(open_base_model(directory).read_tensor(Q), theirs)


def test_fused_experts_in_fp8(plain: Path, tmp_path: Path) -> None:
    directory = fp8(plain, tmp_path / "fp8")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    pairs = [in_blocks(torch.randn(48, 64), (16, 32)) for _ in range(3)]
    weight, scale = torch.stack([weight for weight, _ in pairs]), torch.stack([scale for _, scale in pairs])
    save_file({name: weight, f"{name}_scale_inv": scale}, directory / WEIGHTS)
    theirs = by_transformers(weight, scale, torch.bfloat16)
    assert torch.equal(open_base_model(directory).read_tensor(name), theirs)


def test_pieces_of_a_weight_are_the_whole(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makes: list[Make] = [fp8, nf4, int8]
    whole = [read(open_base_model(make(plain, tmp_path / f"{i}"))) for i, make in enumerate(makes)]
    for module in ("scaled", "bitsandbytes"):
        monkeypatch.setattr(f"worker.models.checkpoint.{module}.CHUNK_ELEMENTS", 200)
    for i, once in enumerate(whole):
        pieces = read(open_base_model(tmp_path / f"{i}"))
        assert all(torch.equal(once[name], pieces[name]) for name in once)


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches how many float32 values any one operation makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype is torch.float32:
            self.most = max(self.most, result.numel())
        return result


@pytest.mark.parametrize("block", [(32, 96), None], ids=["tall blocks", "one scale"])
def test_a_scale_of_many_rows_widens_some_rows_at_a_time(
    block: tuple[int, int] | None, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_base_model(fp8(plain, tmp_path / "fp8", block))
    whole = model.read_tensor(Q)
    monkeypatch.setattr("worker.models.checkpoint.scaled.CHUNK_ELEMENTS", 1000)
    with Widest() as widest:  # type: ignore[no-untyped-call]
        pieces = model.read_tensor(Q)
    assert 0 < widest.most <= 1000
    assert torch.equal(pieces, whole)


@pytest.mark.parametrize("scale", [torch.ones(()), torch.ones(0, 1)], ids=["one scale", "a scale a row"])
def test_a_weight_without_rows_is_one(scale: torch.Tensor, plain: Path, tmp_path: Path) -> None:
    stored = load_file(fp8(plain, tmp_path / "fp8") / WEIGHTS)
    empty = {Q: torch.empty(0, 96, dtype=torch.float8_e4m3fn), f"{Q}_scale_inv": scale}
    save_file(stored | empty, tmp_path / "fp8" / WEIGHTS)
    assert open_base_model(tmp_path / "fp8").read_tensor(Q).shape == (0, 96)


@pytest.mark.parametrize("dtype", sorted(name for name, bits in DTYPE_BITS.items() if bits <= 8 and name != "BOOL"))
def test_values_of_few_bits_without_scales_are_refused_whatever_their_dtype(dtype: str, tmp_path: Path) -> None:
    entry = TensorEntry(Q, dtype, (4, 8), tmp_path, WEIGHTS, 0, 4 * 8 * DTYPE_BITS[dtype] // 8)
    unpacking = Unpacking(tmp_path, "fp8", {}, "BF16", {Q: entry}, dict[str, torch.Tensor]().__getitem__)
    with pytest.raises(PackagingError, match="the scales that fp8 keeps for it are not there") as caught:
        unpacking.finish()
    assert caught.value.fields["dtype"] == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_compressed_tensors_multiplies_in_the_dtype_of_its_scales(
    dtype: torch.dtype, plain: Path, tmp_path: Path
) -> None:
    """Against ``compressed_tensors``' ``_dequantize``: the value in the scale's dtype, times the scale."""
    stored = load_file(float_quantized(plain, tmp_path / "ct", dtype) / WEIGHTS)
    model = open_base_model(tmp_path / "ct")
    expected = (stored[Q].to(dtype) * stored[f"{Q}_scale"]).bfloat16()
    assert torch.equal(model.read_tensor(Q), expected)
    assert not [name for name in model.tensors if "scale" in name]
    assert_as_announced(model)


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    directory = mxfp4(experts(tmp_path / "plain"), tmp_path / "mxfp4")
    stored, model = load_file(directory / WEIGHTS), open_base_model(directory)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    theirs = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
    assert theirs.shape == (3, 64, 80)
    assert torch.equal(model.read_tensor(name), theirs)
    assert set(model.tensors) == {name, f"{name}_bias"}
    assert_as_announced(model)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_by_its_published_formula(nested: bool, plain: Path, tmp_path: Path) -> None:
    stored = load_file(nf4(plain, tmp_path / "nf4", nested=nested) / WEIGHTS)
    model = open_base_model(tmp_path / "nf4")
    for name, shape in ((Q, (64, 96)), ("model.layers.0.mlp.up_proj.weight", (72, 100))):
        scales = stored[f"{name}.absmax"]
        if nested:
            state = json.loads(bytes(stored[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
            inner = stored[f"{name}.nested_quant_map"][scales.long()]
            scales = inner * stored[f"{name}.nested_absmax"][torch.arange(len(inner)) // 256] + state["nested_offset"]
        packed = stored[name].reshape(-1).tolist()
        codes = torch.tensor([NF4[half] for byte in packed for half in (byte >> 4, byte & 15)])
        expected = (codes * scales[torch.arange(len(codes)) // 64]).bfloat16().reshape(shape)
        assert torch.equal(model.read_tensor(name), expected)
    error = (model.read_tensor(Q).float() - load_file(plain / WEIGHTS)[Q].float()).norm()
    assert error / load_file(plain / WEIGHTS)[Q].float().norm() < 0.12
    assert model.made_plain_from == "bitsandbytes"
    assert_as_announced(model)


def test_weights_that_bitsandbytes_itself_packed() -> None:
    """Made by bitsandbytes (see the file's metadata): NF4, NF4 nested, FP4 and 8 bits, and what it makes of them."""
    directory = Path(__file__).parent / "data" / "bitsandbytes"
    model = open_base_model(directory)
    expected = load_file(directory / "expected.safetensors")
    assert set(model.tensors) == set(expected)
    for name, want in expected.items():
        have = model.read_tensor(name)
        assert have.dtype == want.dtype
        assert torch.equal(have, want), name


def test_code_tables_are_symmetric_where_they_should_be() -> None:
    assert list(NF4) == sorted(NF4)
    assert (NF4[0], NF4[7], NF4[15]) == (-1, 0, 1)
    assert max(FP4) == 1
    assert [-value for value in FP4[:8]] == list(FP4[8:])


def test_eight_bit_rows_of_bitsandbytes(plain: Path, tmp_path: Path) -> None:
    """``int8_vectorwise_dequant``: value * scale / 127 in float32; transformers then casts to the model's dtype."""
    stored = load_file(int8(plain, tmp_path / "int8") / WEIGHTS)
    model = open_base_model(tmp_path / "int8")
    module = Q.removesuffix(".weight")
    expected = (stored[Q] * stored[f"{module}.SCB"].view(-1, 1) * 7.874015718698502e-3).bfloat16()
    assert torch.equal(model.read_tensor(Q), expected)
    assert list(model.tensors) == sorted(load_file(plain / WEIGHTS), key=list(stored).index)
    assert_as_announced(model)


def test_the_model_s_dtype_decides(plain: Path, tmp_path: Path) -> None:
    directory = fp8(plain, tmp_path / "fp8")
    config = json.loads((directory / "config.json").read_text())
    del config["dtype"]
    for described, dtype in (
        ({"torch_dtype": "float16"}, "F16"),
        ({}, "BF16"),
        ({"text_config": {"dtype": "float32"}}, "F32"),
    ):
        (directory / "config.json").write_text(json.dumps(config | described))
        assert open_base_model(directory).tensors[Q].dtype == dtype


def test_left_as_stored_for_the_converter(plain: Path, tmp_path: Path) -> None:
    """What upstream turns into floats by itself stays upstream's; what it does not know is made plain."""
    model = open_base_model(fp8(plain, tmp_path / "fp8"), as_stored=True)
    assert (model.quant_method, model.made_plain_from) == ("fp8", None)
    assert model.tensors[Q].dtype == "F8_E4M3"
    model = open_base_model(nf4(plain, tmp_path / "nf4"), as_stored=True)
    assert (model.quant_method, model.made_plain_from) == (None, "bitsandbytes")
    assert open_base_model(plain).fingerprint != model.fingerprint


def put(name: str, value: torch.Tensor, stored: dict[str, torch.Tensor]) -> None:
    stored[name] = value


def spoiled(
    make: Make, plain: Path, directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]
) -> PackagingError:
    """How a quantized checkpoint whose tensors were changed is refused."""
    shutil.rmtree(directory, ignore_errors=True)
    stored = load_file(make(plain, directory) / WEIGHTS)
    change(stored)
    save_file(stored, directory / WEIGHTS)
    with pytest.raises(PackagingError) as caught:
        open_base_model(directory)
    assert caught.value.code is ErrorCode.BASE_MODEL_QUANTIZED
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("make", "part", "value", "says"),
    [
        (fp8, f"{Q}_scale_inv", None, "the scales that fp8 keeps for it are not there"),
        (fp8, Q, None, "is the scale of"),
        (fp8, f"{Q}_scale_inv", torch.ones(4, 4), "no shape of scales for a weight of [64, 96] in blocks of [16, 32]"),
        (fp8, f"{Q}_scale_inv", torch.ones(4, 3).double(), "is a scale stored as F64"),
        (fp8, Q, torch.zeros(64, 48, dtype=torch.int8), "is stored as I8, with its scale"),
        (float_quantized, f"{Q}_scale", torch.ones(63, 1), "no shape of scales"),
        (float_quantized, f"{Q}_zero_point", torch.ones(64, 1), "asymmetrically"),
        (nf4, f"{Q}.absmax", torch.ones(95), "holds 95 values as F32 where 96 as F32 belong"),
        (nf4, f"{Q}.quant_map", None, "is missing"),
        (nf4, f"{Q}.quant_map", torch.linspace(-1, 1, 16), "lists other values than those of nf4"),
        (nf4, f"{Q}.quant_state.bitsandbytes__nf4", None, "beside it"),
        (nf4, f"{Q}.quant_state.bitsandbytes__nf4", torch.zeros(9, dtype=torch.uint8), "names no type, shape"),
        (nf4, f"{Q}.quant_state.bitsandbytes__nf4", torch.zeros(9999, dtype=torch.uint8), "too long"),
        (nf4, Q, torch.zeros(100, 1, dtype=torch.uint8), "holds 100 bytes"),
        (int8, Q.replace("weight", "weight_format"), torch.tensor(2, dtype=torch.uint8), "not lie row by row"),
        (int8, Q.replace("weight", "SCB"), None, "the scales that bitsandbytes keeps for it are not there"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    make: Make, part: str, value: torch.Tensor | None, says: str, plain: Path, tmp_path: Path
) -> None:
    def change(stored: dict[str, torch.Tensor]) -> None:
        stored.pop(part, None)
        if value is not None:
            stored[part] = value

    error = spoiled(make, plain, tmp_path / "spoiled", change)
    assert says in error.message
    assert "q_proj" in error.message


def test_nested_scales_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    def nested(plain: Path, directory: Path) -> Path:
        return nf4(plain, directory, nested=True)

    for part, value in (
        ("nested_absmax", torch.ones(2)),
        ("nested_quant_map", torch.ones(16)),
        ("absmax", torch.ones(96)),
    ):
        error = spoiled(nested, plain, tmp_path / "nested", partial(put, f"{Q}.{part}", value))
        assert f"{Q}.{part} holds" in error.message


def test_mxfp4_parts_that_do_not_fit(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    base = experts(tmp_path / "plain")
    error = spoiled(mxfp4, base, tmp_path / "m", lambda stored: stored.pop(f"{name}_scales"))
    assert f"has no {name}_scales beside it" in error.message
    error = spoiled(mxfp4, base, tmp_path / "m", lambda stored: stored.pop(f"{name}_blocks"))
    assert f"{name}_scales is stored as U8" in error.message
    wrong = torch.zeros(3, 80, 1, dtype=torch.uint8)
    error = spoiled(mxfp4, base, tmp_path / "m", lambda stored: stored.update({f"{name}_scales": wrong}))
    assert "not the bytes of [3, 80, 2]" in error.message
    wrong = torch.zeros(3, 80, 2, 8, dtype=torch.uint8)
    error = spoiled(mxfp4, base, tmp_path / "m", lambda stored: stored.update({f"{name}_blocks": wrong}))
    assert "not bytes of (experts, rows, groups, 16)" in error.message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "modelopt"}, "modelopt"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "no config_groups"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
            },
            "pack-quantized, 4 bits",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
                "sparsity_config": {"format": "sparse-24-bitmask"},
            },
            "sparse sparse-24-bitmask",
        ),
    ],
)
def test_methods_that_are_not_read_are_named(settings: dict[str, Any], named: str, plain: Path) -> None:
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(PackagingError) as caught:
        open_base_model(plain)
    assert caught.value.code is ErrorCode.BASE_MODEL_QUANTIZED
    assert named in caught.value.message
    assert "16-bit model" in caught.value.remedy


def test_quant_states_that_lie(plain: Path, tmp_path: Path) -> None:
    """Shapes and block sizes of hostile JSON: nothing is allocated by them, nothing divides by zero."""
    name = f"{Q}.quant_state.bitsandbytes__nf4"
    good: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 96]}
    lies: list[dict[str, Any]] = [
        {"blocksize": 0}, {"blocksize": -64}, {"blocksize": 63}, {"shape": [1 << 40, 1 << 40]}, {"shape": [-64, -96]},
        {"shape": "64"}, {"dtype": "float8"}, {"quant_type": "nf5"}, {"nested_blocksize": -1}, {"nested_offset": "1"},
        {"shape": []},
    ]  # fmt: skip
    for lie in lies:
        raw = json.dumps(good | lie).encode()
        packed = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        spoiled(nf4, plain, tmp_path / "lie", partial(put, name, packed))


@pytest.mark.parametrize("key", ["blocksize", "nested_blocksize"])
def test_blocks_that_bitsandbytes_never_writes_are_refused_by_their_size(key: str, plain: Path, tmp_path: Path) -> None:
    """Scales are spread over their blocks: one of two thousand million weights would be that many numbers."""
    name = f"{Q}.quant_state.bitsandbytes__nf4"

    def lie(stored: dict[str, torch.Tensor]) -> None:
        state = json.loads(bytes(stored[name].tolist())) | {key: 1 << 31}
        stored[name] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        one = {"blocksize": ("absmax", torch.uint8), "nested_blocksize": ("nested_absmax", torch.float32)}
        part, dtype = one[key]
        stored[f"{Q}.{part}"] = torch.ones(1, dtype=dtype)
        if key == "blocksize":
            stored[f"{Q}.nested_absmax"] = torch.ones(1)

    error = spoiled(partial(nf4, nested=True), plain, tmp_path / "lie", lie)
    assert f"says {key} 2147483648" in error.message
    assert "64" in error.message


@pytest.mark.parametrize("block", [32, 4096])
def test_blocks_of_every_size_that_bitsandbytes_writes(block: int, plain: Path, tmp_path: Path) -> None:
    model = open_base_model(nf4(plain, tmp_path / "nf4", block=block))
    assert model.read_tensor(Q).shape == (64, 96)
