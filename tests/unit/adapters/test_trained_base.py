"""The base as training in 4 bits saw it: which weights are rounded, and that everything reads them so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from api_client.contract.errors import ErrorCode, PackagingError
from tests.quantized import nf4
from tests.unit.adapters.hand_made import write_base
from tests.unit.adapters.peft_reference import read_all, save_base
from tests.unit.adapters.tiny_models import TINY
from worker.models.adapters.trained_base import base_as_trained
from worker.models.checkpoint import open_base_model
from worker.models.checkpoint.bitsandbytes import dynamic_map, round_trip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    save_base(LlamaConfig(**TINY["llama"][1]), directory, dtype="bfloat16")
    return directory


@pytest.mark.parametrize("nested", [False, True])
def test_linear_layers_but_the_head_are_rounded(nested: bool, llama: Path) -> None:
    base, plain = open_base_model(llama), read_all(llama)
    rounded = base_as_trained(base, "nf4_nested" if nested else "nf4")
    differing = set()
    for name, weight in plain.items():
        seen = rounded.read_tensor(name)
        assert seen.dtype == weight.dtype
        if not torch.equal(seen, weight):
            differing.add(name)
            assert torch.equal(seen, round_trip(weight, "nf4", nested=nested))
    assert differing == {name for name in plain if name.endswith("_proj.weight")}
    assert rounded.fingerprint != base.fingerprint
    assert rounded.fingerprint == base_as_trained(open_base_model(llama), "nf4_nested" if nested else "nf4").fingerprint


def test_rounding_is_what_a_four_bit_checkpoint_holds(llama: Path, tmp_path: Path) -> None:
    stored = open_base_model(nf4(llama, tmp_path / "nf4"))
    rounded = base_as_trained(open_base_model(llama), "nf4")
    for name in stored.tensors:
        assert torch.equal(stored.read_tensor(name), rounded.read_tensor(name)), name


def test_a_base_in_four_bits_is_not_rounded_again(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        base_as_trained(open_base_model(nf4(llama, tmp_path / "nf4")), "nf4")
    assert caught.value.code is ErrorCode.REQUEST_INVALID
    assert caught.value.fields == {"field": "base_precision"}


def test_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    base = open_base_model(write_base(tmp_path, {"x.q_proj.weight": torch.ones(4, 4)}, model_type="unheard_of"))
    with pytest.raises(PackagingError) as caught:
        base_as_trained(base, "nf4")
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE


def test_values_of_the_dynamic_map() -> None:
    values = dynamic_map()
    assert values.numel() == 256
    assert torch.equal(values, values.sort().values)
    assert values[127] == 0
    assert values[-1] == 1
    assert values[0] == pytest.approx(-0.99297, abs=1e-5)
