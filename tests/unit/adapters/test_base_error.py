"""The distance of the base that was trained on from the one merged into, beside the adapter's change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.quantized import nf4_parts
from tests.unit.adapters.hand_made import Q, pair, write_adapter, write_base
from worker.models.adapters import Overlay, build_overlay, open_adapter
from worker.models.adapters.base_error import measure_base_error
from worker.models.checkpoint import BaseModel, open_base_model
from worker.models.checkpoint.bitsandbytes import NF4, round_trip

WEIGHT = f"{Q}.weight"


def merge(weight: torch.Tensor, delta: torch.Tensor, directory: Path) -> tuple[Overlay, BaseModel]:
    """A base of one weight, and an adapter of full rank that changes it by ``delta``."""
    base = open_base_model(write_base(directory / "base", {WEIGHT: weight}))
    factors = pair(Q, torch.eye(len(delta)).tolist(), delta.tolist())
    rank = len(delta)
    adapter = open_adapter(write_adapter(directory / "adapter", factors, r=rank, lora_alpha=rank))
    build_overlay(adapter, base, directory / "overlay", precision="base")
    return Overlay.load(directory / "overlay"), base


def test_ratio_is_that_of_the_norms(tmp_path: Path) -> None:
    torch.manual_seed(2)
    weight, delta = torch.randn(64, 64).bfloat16(), torch.randn(64, 64) * 0.01
    overlay, base = merge(weight, delta, tmp_path)
    measured = measure_base_error(overlay, base, "nf4")
    assert measured is not None
    error = (round_trip(weight, "nf4").float() - weight.float()).norm()
    assert measured.ratio == pytest.approx(float(error / delta.norm()), rel=1e-5)
    assert measured.relative_error == pytest.approx(float(error / weight.float().norm()), rel=1e-5)
    assert measured.relative_change == pytest.approx(float(delta.norm() / weight.float().norm()), rel=1e-5)
    assert 0.085 < measured.relative_error < 0.1  # what the note says of normally distributed weights
    assert (measured.measured, measured.changed) == (1, 1)


def test_weights_on_the_grid_have_no_error(tmp_path: Path) -> None:
    """A base that was itself made of 4-bit weights: nothing lies between the two."""
    weight = torch.tensor(NF4).repeat(64, 4)
    overlay, base = merge(weight, torch.ones(64, 64), tmp_path)
    measured = measure_base_error(overlay, base, "nf4")
    assert measured is not None
    assert measured.ratio < 1e-7


def test_an_adapter_that_changes_nothing_has_no_ratio(tmp_path: Path) -> None:
    overlay, base = merge(torch.randn(64, 64), torch.zeros(64, 64), tmp_path)
    assert measure_base_error(overlay, base, "nf4") is None


def test_names_of_the_overlay_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of experts: a set of all names for each of them would take the time of their square."""
    overlay, base = merge(torch.randn(64, 64), torch.ones(64, 64), tmp_path)
    asked, own = [], Overlay.names

    def counted(self: Overlay) -> frozenset[str]:
        asked.append(self)
        return own(self)

    monkeypatch.setattr(Overlay, "names", counted)
    many = dataclasses.replace(base, tensors={**base.tensors, **dict.fromkeys("abc", base.tensors[WEIGHT])})
    assert measure_base_error(overlay, many, "nf4") is not None
    assert len(asked) == 1


@pytest.mark.parametrize("rows", [64, 37])
def test_round_trip_is_quantizing_and_reading_back(rows: int) -> None:
    """Against the parts that a checkpoint stores, put together by hand."""
    torch.manual_seed(3)
    weight = torch.randn(rows, 50)
    parts = nf4_parts("w", weight, nested=False)
    codes = [half for byte in parts["w"].reshape(-1).tolist() for half in (byte >> 4, byte & 15)]
    values = torch.tensor(NF4)[codes] * parts["w.absmax"].repeat_interleave(64)[: len(codes)]
    assert torch.equal(round_trip(weight, "nf4"), values.reshape(weight.shape))


def test_round_trip_of_nothing_and_of_fp4() -> None:
    assert torch.equal(round_trip(torch.zeros(3, 64), "nf4"), torch.zeros(3, 64))
    values = torch.tensor([12.0, -8.0, 6.0, 4.0, 3.0, -2.0, 0.0625, 0.0]).repeat(8)
    assert torch.allclose(round_trip(values, "fp4"), values, rtol=1e-6)
