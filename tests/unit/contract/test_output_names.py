"""Names of outputs, as the design's table gives them."""

from __future__ import annotations

from typing import Any

import pytest

from api_client.contract.outputs import RECORDS, InputNames, location_name, planned_outputs
from api_client.contract.request import Options, PackagingRequest
from api_client.contract.rules import resolve_request


def names(**fields: Any) -> list[str]:
    fields = {"base_model": "/m/base", "checkpoint": "/r/checkpoint-900", "output_dir": "/o"} | fields
    request, options = resolve_request(PackagingRequest(**fields))
    planned = planned_outputs(request, options, InputNames.of(request, options))
    return [output.name for output in planned if output.kind not in RECORDS]


def test_each_template_names_its_files() -> None:
    assert names() == ["merged_model.gguf", "merged_model-Q4_K_M.gguf", "quality.json"]
    assert names(evaluation="off") == ["merged_model.gguf", "merged_model-Q4_K_M.gguf"]
    assert names(template="merge") == ["merged_model.gguf", "quality.json"]
    assert names(template="quantize_base", checkpoint=None) == ["base.gguf", "base-Q4_K_M.gguf", "quality.json"]
    assert names(template="lora_only") == ["checkpoint-900-lora.gguf"]


def test_model_name_replaces_the_stem() -> None:
    assert names(model_name="tuned") == ["tuned.gguf", "tuned-Q4_K_M.gguf", "quality.json"]
    assert names(model_name="tuned.gguf", template="merge") == ["tuned.gguf", "quality.json"]
    assert names(model_name="tuned.gguf", template="lora_only") == ["tuned-lora.gguf"]


def test_several_types_keep_their_order_and_the_unquantized_file_can_be_dropped() -> None:
    assert names(quant_types=["Q8_0", "IQ4_XS"], keep_unquantized=False) == [
        "merged_model-Q8_0.gguf",
        "merged_model-IQ4_XS.gguf",
        "quality.json",
    ]
    # without quantizing it is the only output, so it stays
    alone = names(template="custom", options=Options(quantize=False), keep_unquantized=False)
    assert alone == ["merged_model.gguf", "quality.json"]


def test_everything_that_is_published_is_planned() -> None:
    assert names(quant_types=["IQ2_M"], companions=True, save_merged=True) == [
        "merged_model.gguf",
        "merged_model-IQ2_M.gguf",
        "merged_model.imatrix.gguf",
        "merged_model-hf",
        "quality.json",
        "README.md",
        "Modelfile",
    ]
    assert names(template="lora_only", companions=True) == ["checkpoint-900-lora.gguf", "README.md"]
    given = names(quant_types=["IQ2_M"], imatrix="/m/given.dat")
    assert given == ["merged_model.gguf", "merged_model-IQ2_M.gguf", "quality.json"]


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("/r/checkpoint-9/", "checkpoint-9"),
        ("/r/checkpoint-9/adapter_model", "checkpoint-9"),
        ("/r/checkpoint-9/adapter_model.safetensors", "checkpoint-9"),
        ("/r/adapter", "adapter"),
        ("/r/latest", "checkpoint-7"),
        ("best", "checkpoint-7"),
        ("checkpoint-8", "checkpoint-8"),
        ("s3://b/r/latest", "checkpoint-7"),
        ("s3://b/r/checkpoint-9", "checkpoint-9"),
        ("hf://owner/lora@main", "lora"),
    ],
)
def test_the_adapter_is_named_by_its_checkpoint(checkpoint: str, expected: str) -> None:
    request = PackagingRequest(template="lora_only", base_model="/m/b", checkpoint=checkpoint, output_dir="/o")
    request, options = resolve_request(request)
    assert InputNames.of(request, options, "checkpoint-7").checkpoint == expected


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("/runs/42/checkpoint-9", "42-checkpoint-9"),
        ("/runs/42/latest", "42-checkpoint-7"),
        ("latest", "o-checkpoint-7"),
        ("/runs/final", "final"),
        ("s3://bucket/run/checkpoint-9", "run-checkpoint-9"),
        ("s3://bucket/checkpoint-9", "bucket-checkpoint-9"),
        ("hf://owner/tuned@v2", "tuned"),
    ],
)
def test_full_weights_give_their_own_name(checkpoint: str, expected: str) -> None:
    request = PackagingRequest(template="quantize_base", base_model="/m/b", checkpoint=checkpoint, output_dir="/r/o")
    request, options = resolve_request(request)
    assert InputNames.of(request, options, "checkpoint-7").base == expected


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/models/Llama 3", "Llama 3"),
        ("s3://bucket/prefix/model", "model"),
        ("hf://owner/name@main", "name"),
        ("s3://bucket", "bucket"),
    ],
)
def test_base_name_comes_from_the_last_part_of_the_location(location: str, name: str) -> None:
    assert location_name(location) == name
