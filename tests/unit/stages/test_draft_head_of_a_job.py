"""What ``prepare`` says and foresees of prediction layers, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api_client import PackagingRequest
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.templates import BUILTIN_TEMPLATES
from config.settings import Settings
from tests.unit.convert.draft_samples import save_predicting, without_draft_head
from worker.local.foresee import Foreseen, foresee


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for types that need a matrix."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
    return save_predicting("qwen3.5", tmp_path_factory.mktemp("model") / "wide", **wide)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_draft_head("qwen3.5", base, tmp_path_factory.mktemp("run") / "checkpoint-7")


@pytest.fixture
def foreseen(tmp_path: Path) -> Any:
    def told(**values: Any) -> Foreseen:
        request = PackagingRequest(template="quantize_base", output_dir=str(tmp_path / "out"), **values)
        return foresee(request, BUILTIN_TEMPLATES, Settings(home=tmp_path / "home"))

    return told


def notes(told: Foreseen) -> list[tuple[str, str]]:
    return [note for note in told.notes if "prediction layers" in note[1].lower()]


def test_sizes_are_of_what_is_done(base: Path, tuned: Path, foreseen: Any) -> None:
    kept = foreseen(base_model=base, quant_types=["Q8_0"])
    dropped = foreseen(base_model=base, quant_types=["Q8_0"], draft_head="drop")
    grafted = foreseen(base_model=base, checkpoint=tuned, quant_types=["Q8_0"])
    alone = foreseen(base_model=tuned, quant_types=["Q8_0"])
    assert notes(kept) == [("info", "1 prediction layers (MTP, NextN) are kept")]
    assert notes(dropped) == [("info", "Prediction layers (MTP, NextN) are left out, as draft_head says")]
    assert notes(grafted) == [("info", "1 prediction layers (MTP, NextN) are taken from the base model wide")]
    assert notes(alone) == [
        ("warning", "Prediction layers (MTP, NextN) are left out: no other model is named that has them")
    ]
    assert kept.unquantized_bytes > dropped.unquantized_bytes
    # the header names another model, by a few bytes
    assert abs(grafted.unquantized_bytes - kept.unquantized_bytes) < 1000
    assert abs(alone.unquantized_bytes - dropped.unquantized_bytes) < 1000


def test_types_that_need_a_matrix_of_layers_which_are_never_run(
    base: Path, tuned: Path, foreseen: Any, tmp_path: Path
) -> None:
    """By itself a job goes on without the layers, as it did before there were any to graft."""
    for model in ({"base_model": base}, {"base_model": base, "checkpoint": tuned}):
        told = foreseen(**model, quant_types=["IQ2_XXS", "Q8_0"])
        ((level, said),) = notes(told)
        assert level == "warning"
        assert "left out: IQ2_XXS cannot be made of them without a matrix" in said
        with pytest.raises(PackagingError) as refused:
            foreseen(**model, quant_types=["IQ2_XXS", "Q8_0"], draft_head="graft")
        assert refused.value.code is ErrorCode.IMATRIX_REQUIRED
        assert "`drop`" in refused.value.remedy


def test_a_base_elsewhere_is_not_fetched_by_itself(tuned: Path, foreseen: Any) -> None:
    told = foreseen(base_model="hf://owner/name", checkpoint=tuned, quant_types=["Q8_0"])
    ((level, said),) = notes(told)
    assert level == "warning"
    assert "hf://owner/name is fetched for them with draft_head `graft` alone" in said


def test_it_has_no_effect_without_a_model_file(tmp_path: Path) -> None:
    request = PackagingRequest(
        template="lora_only", base_model="/b", checkpoint="/c", output_dir=str(tmp_path), draft_head="drop"
    )
    with pytest.raises(PackagingError) as refused:
        foresee(request, BUILTIN_TEMPLATES, Settings(home=tmp_path / "home"))
    assert refused.value.fields == {"field": "draft_head", "switch": "export_gguf"}
