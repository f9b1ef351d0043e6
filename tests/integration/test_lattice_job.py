"""A checkpoint of quantization-aware training through the real service: found, hit where asked for, loaded, told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from api_client import Job
from tests.integration.harness import Installation
from tests.quantized import on_lattice
from tests.tiny import tiny_base
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.types import GGMLType
from worker.models.kernels import dequantize_rows, quantize_rows, widen_rows

HINT = "lie on the lattice of Q4_0, as after quantization-aware training"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("lattice")
    return str(on_lattice(tiny_base(directory / "plain", hidden_size=256), directory / "base"))


def done(service: Installation, name: str, base: str, **values: Any) -> tuple[Job, str]:
    """A job on the base alone that went well, and its log."""
    fields = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q4_0"], "evaluation": "off"} | values
    job = service.wait(service.submit(name, base_model=base, model_name="m", **fields), 180)
    assert job.error is None
    return job, "\n".join(event.message for event in service.client.events(job.id))


def test_a_lattice_is_found_unasked_and_hit_where_asked_for(real: Installation, trained: str) -> None:
    """The file that is published gives back the checkpoint's weights, and llama.cpp has loaded it (verify)."""
    _, log = done(real, "stock", trained)
    assert f"16 of 16 quantized tensors {HINT}" in log

    job, log = done(real, "hit", trained, lattice="auto", recipe={"pure": True})
    assert HINT not in log
    manifest = json.loads(real.path("manifest.json", "hit").read_text())
    (facts,) = [file["facts"]["lattice"] for file in manifest["files"] if "lattice" in file.get("facts", {})]
    assert facts["exact"] == facts["weights"] == facts["on_lattice"] > 2 * facts["stock"]
    assert (facts["tensors"], facts["exact_tensors"], facts["inexact"]) == (16, 16, {})
    assert f"m-Q4_0.gguf: {facts['exact']:,} of {facts['weights']:,} weights in 16 tensors are those of the" in log
    assert "verify" in [stage.name.value for stage in job.stages]
    with open_gguf(real.path("m-Q4_0.gguf", "hit")) as file, open_gguf(real.path("m.gguf", "hit")) as unquantized:
        for tensor in unquantized.tensors:
            if tensor.type is GGMLType.BF16:
                values = dequantize_rows(GGMLType.Q4_0, file.tensor_bytes(file.by_name[tensor.name]))
                narrow = np.empty((len(values), tensor.row_bytes), np.uint8)
                quantize_rows(GGMLType.BF16, values, narrow)
                assert np.array_equal(
                    widen_rows(GGMLType.BF16, narrow), widen_rows(tensor.type, unquantized.tensor_bytes(tensor))
                )


def test_tensors_of_other_types_are_named(real: Installation, trained: str) -> None:
    _, log = done(real, "mixed", trained, lattice="auto", keep_unquantized=False)
    assert "m-Q4_0.gguf: 1 tensors that lie on a lattice are of types that cannot hold it (output.weight)" in log
    _, log = done(real, "none", trained, lattice="auto", quant_types=["Q4_K_M"], recipe={"pure": True})
    assert HINT not in log
