"""Facts that are published hold no path, whatever a stage or an older version says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stages.context import StageResult
from worker.stages.facts import PublicFacts, holds_path
from worker.stages.prepared import PRIVATE_FIELDS, GivenMatrix, Prepared

OLD_FORM: dict[str, Any] = {
    "base_dir": "/data/models/base",
    "base_name": "base",
    "adapter_dir": "/runs/1/checkpoint-9",
    "adapter_base": "relative/or/a/hub/name",
    "checkpoint_dir": "/runs/1/checkpoint-9",
    "checkpoint_name": "checkpoint-9",
    "tokenizer_dir": "/data/models/base",
    "architecture": "LlamaForCausalLM",
    "inputs": {"base_model": {"name": "base", "tensors": 3}},
    "imatrix": {"calibration": "/home/me/text.txt"},
    "predicted_bytes": {"merged_model.gguf": 10},
}
"""Facts of prepare as the first version stored them."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/models/base", True),
        ("read from /home/me/base, then some", True),
        ('{"dir": "/a/b"}', True),
        ("~/models/base", True),
        ("file:///etc/passwd", True),
        ("owner/name", False),
        ("s3://bucket/prefix/a", False),
        ("https://example.org/a/b", False),
        ("12 tokens / s, 3/4 done", False),
        ("model.layers.0.q_proj.weight", False),
    ],
)
def test_what_holds_a_path(text: str, expected: bool) -> None:
    assert holds_path(text) is expected


@pytest.mark.parametrize("facts", [{"a": "/x/y"}, {"a": [{"b": "in /x/y"}]}, {"/x/y": 1}, {"a": {"/x/y": 1}}])
def test_a_stage_whose_facts_hold_a_path_is_broken(facts: dict[str, Any]) -> None:
    with pytest.raises(PackagingError) as refused:
        StageResult(facts=facts)
    assert refused.value.code is ErrorCode.INTERNAL_ERROR
    assert "/x/y" not in str(refused.value.message).replace("'/x/y'", "")


def test_facts_that_are_not_json_are_a_mistake_of_the_stage() -> None:
    with pytest.raises(TypeError):
        PublicFacts({"a": Path("/x")})


def test_the_old_form_of_prepare_s_facts_is_read_and_none_of_its_paths_is_public() -> None:
    result = StageResult.read((), OLD_FORM)
    assert result.prepared == Prepared(
        base_dir=Path("/data/models/base"),
        base_name="base",
        adapter_dir=Path("/runs/1/checkpoint-9"),
        adapter_base="relative/or/a/hub/name",
        checkpoint_dir=Path("/runs/1/checkpoint-9"),
        checkpoint_name="checkpoint-9",
        tokenizer_dir=Path("/data/models/base"),
        imatrix=GivenMatrix(calibration=Path("/home/me/text.txt")),
    )
    public = {"base_name", "checkpoint_name", "architecture", "inputs", "predicted_bytes"}
    assert set(result.facts) == public
    assert not set(result.facts) & PRIVATE_FIELDS


def test_what_is_stored_now_has_every_field_of_the_old_form() -> None:
    result = StageResult.read((), OLD_FORM)
    assert result.stored_facts() == OLD_FORM, "a worker of the version before goes on with it"
    assert StageResult.read((), result.stored_facts()) == result


def test_a_damaged_record_is_a_packaging_error() -> None:
    with pytest.raises(PackagingError) as refused:
        StageResult.read((), OLD_FORM | {"tokenizer_dir": 7})
    assert refused.value.code is ErrorCode.INTERNAL_ERROR
