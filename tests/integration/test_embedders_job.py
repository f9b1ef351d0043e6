"""Embedders and rerankers through the real service: held to the trained model, and refused where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from api_client import Job
from api_client.contract.job import JobState
from tests.field.encoders import save_embedder
from tests.integration.harness import REAL_STAGES, Installation
from tests.unit.convert.test_classifiers import save_adapter, save_base
from worker.models.gguf.reader import open_gguf

ALONE = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q8_0"]}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedder("bert", tmp_path_factory.mktemp("model") / "embedder")


def ended(service: Installation, name: str, base: Path, **values: Any) -> Job:
    return service.wait(service.submit(name, base_model=str(base), evaluation="off", **values), 180)


def verified(job: Job) -> dict[str, dict[str, Any]]:
    manifest = json.loads((Path(str(job.request.output_dir)) / "manifest.json").read_text())
    facts: dict[str, dict[str, Any]] = manifest["stages"]["verify"]["facts"]
    return facts


def test_an_embedder_s_files_give_the_trained_model_s_vectors(service: Installation, embedder: Path) -> None:
    service.start_worker(**REAL_STAGES)
    job = ended(service, "embedder", embedder, **ALONE)
    assert job.error is None
    figures = verified(job)["alike"]
    assert verified(job)["prompts"] == {"query": "query: ", "document": "passage: "}
    assert sorted(figures) == ["embedder-Q8_0.gguf", "embedder.gguf"]
    assert all(figure["least"] > 0.999 and figure["in_order"] for figure in figures.values())
    messages = [event.message for event in service.client.events(job.id)]
    assert any(
        message.startswith("embedder.gguf loads and embeds texts as vectors of 64 numbers, cosine ")
        for message in messages
    )
    assert any(
        "prompts before its texts, which no GGUF file holds (query: 'query: '; document" in text for text in messages
    )


def test_a_classifier_s_adapter_on_a_plain_encoder_is_a_reranker(service: Installation, tmp_path: Path) -> None:
    import torch

    service.start_worker(**REAL_STAGES)
    base = save_base("XLMRobertaForMaskedLM", tmp_path / "base", torch.float32)
    auto = transformers.AutoModelForSequenceClassification
    checkpoint = save_adapter(base, tmp_path / "run" / "checkpoint-1", auto, "SEQ_CLS", num_labels=1)
    job = ended(service, "reranker", base, checkpoint=str(checkpoint), quant_types=["Q8_0"])
    assert job.error is None
    with open_gguf(service.path("merged_model-Q8_0.gguf", "reranker")) as file:
        assert {"cls.weight", "cls.output.weight", "cls.output.bias"} <= file.by_name.keys()
    assert all(figure["least"] > 0.98 and figure["in_order"] for figure in verified(job)["alike"].values())
    assert any("ranks, scores within " in event.message for event in service.client.events(job.id))


def test_a_file_that_llama_cpp_reads_otherwise_is_not_published(service: Installation, tmp_path: Path) -> None:
    """llama.cpp computes every BERT with GELU, whatever the config says."""
    service.start_worker(**REAL_STAGES)
    base = save_embedder("bert", tmp_path / "relu")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    job = ended(service, "relu", base, **ALONE)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "output_does_not_load"
    assert (
        "relu.gguf answers otherwise in llama.cpp than the trained model does: its vectors have" in job.error["message"]
    )
    assert not list(Path(str(job.request.output_dir)).glob("*.gguf"))


def test_a_module_that_nobody_knows_ends_the_job_in_prepare(service: Installation, tmp_path: Path) -> None:
    service.start_worker(**REAL_STAGES)
    base = save_embedder("bert", tmp_path / "odd")
    modules = json.loads((base / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.models.WeightedLayerPooling"
    (base / "modules.json").write_text(json.dumps(modules))
    job = ended(service, "odd", base, **ALONE)
    assert job.error is not None
    assert (job.error["code"], job.error["stage"]) == ("unsupported_architecture", "prepare")
    assert "sentence_transformers.models.WeightedLayerPooling" in job.error["message"]
