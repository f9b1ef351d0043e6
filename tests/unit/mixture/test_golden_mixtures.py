"""Every recorded decision of llama-quantize b11434: 69 models, 30 file types, with and without an importance matrix."""

import gzip
import json
from pathlib import Path

import pytest

from api_client.contract.quant_types import QUANT_TYPES, QuantType
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.mixture.model import facts_from_values
from worker.models.mixture.policy import choose_mixture

TABLES = sorted((Path(__file__).parents[2] / "golden" / "mixture").glob("*.json.gz"))


def test_all_tables_are_there() -> None:
    assert len(TABLES) == 69


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_case_of_a_model(path: Path) -> None:
    table = json.loads(gzip.decompress(path.read_bytes()))
    model = facts_from_values(table["kv"])
    tensors = [TensorSpec(name, tuple(shape), GGMLType[kind]) for name, shape, kind in table["tensors"]]
    assert len(table["cases"]) == 60
    for case in table["cases"]:
        kind = QuantType(case["ftype"])
        mixture = choose_mixture(model, tensors, kind, has_imatrix=case["imatrix"])
        label = (kind, case["imatrix"])
        assert [found.name for found in mixture.types] == case["types"], label
        assert mixture.fallback_count == case["n_fallback"], label
        assert QUANT_TYPES[kind].file_type == case["file_type"]
        if not case["imatrix"]:
            need = [mixture.imatrix_needs[0].tensor, mixture.imatrix_needs[0].type.name] if case["error"] else None
            assert need == case.get("offending"), label
            assert bool(mixture.imatrix_needs) == bool(case["error"]), label
