"""Names of outputs, as the design's table gives them."""

from __future__ import annotations

import pytest

from api_client.request import Options, PackagingRequest
from api_client.rules import resolve_request
from worker.stages.outputs import location_name, planned_outputs


def names(base_name: str = "base", checkpoint_name: str | None = "checkpoint-900", **fields: object) -> list[str]:
    fields = {"base_model": "/m/base", "checkpoint": "/r/checkpoint-900", "output_dir": "/o"} | fields
    request, options = resolve_request(PackagingRequest(**fields))
    return [output.name for output in planned_outputs(request, options, base_name, checkpoint_name)]


def test_each_template_names_its_files() -> None:
    assert names() == ["merged_model.gguf", "merged_model-Q4_K_M.gguf"]
    assert names(template="merge") == ["merged_model.gguf"]
    assert names(template="quantize_base", checkpoint=None) == ["base.gguf", "base-Q4_K_M.gguf"]
    assert names(template="lora_only") == ["checkpoint-900-lora.gguf"]


def test_model_name_replaces_the_stem() -> None:
    assert names(model_name="tuned") == ["tuned.gguf", "tuned-Q4_K_M.gguf"]
    assert names(model_name="tuned.gguf", template="merge") == ["tuned.gguf"]


def test_several_types_keep_their_order_and_the_unquantized_file_can_be_dropped() -> None:
    assert names(quant_types=["Q8_0", "IQ4_XS"], keep_unquantized=False) == [
        "merged_model-Q8_0.gguf",
        "merged_model-IQ4_XS.gguf",
    ]
    # without quantizing it is the only output, so it stays
    assert names(template="custom", options=Options(quantize=False), keep_unquantized=False) == ["merged_model.gguf"]


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
