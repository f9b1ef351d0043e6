"""What the contract says files will be called, the console shows, and the real stages make: the same names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from api_client.console.pages import prospect
from api_client.console.pages.form import NewJobForm
from api_client.console.pages.lookup import PathAnswers
from api_client.contract.outputs import RECORDS, InputNames, planned_outputs
from api_client.contract.request import Options, PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.contract.templates import BUILTIN_TEMPLATES
from tests.harness import run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun

REQUESTS: dict[str, dict[str, Any]] = {
    "everything beside a merged model": {
        "quant_types": ["IQ2_M", "Q8_0"],
        "imatrix": {"chunks": 1},
        "companions": True,
        "save_merged": True,
        "evaluation": "quick",
    },
    "an adapter under a name that ends as a file": {
        "template": "lora_only",
        "model_name": "tuned.gguf",
        "companions": True,
    },
    "the adapter of the latest checkpoint": {"template": "lora_only", "checkpoint": "RUN/latest"},
    "a base model whose directory has a revision": {
        "template": "quantize_base",
        "base_model": "ROOT/base@v1",
        "checkpoint": None,
        "keep_unquantized": False,
    },
    "a merged model under a name that ends as a file": {"template": "merge", "model_name": "a b.gguf"},
    "full weights of a run": {"template": "quantize_base", "checkpoint": "RUN/checkpoint-20"},
    "a base model and an adapter": {
        "template": "custom",
        "options": Options(merge_lora=False, export_lora=True),
        "quant_types": ["Q8_0"],
        "imatrix": {"mode": "compute", "chunks": 1},
    },
}


def filled_in(tiny: TinyRun, fields: dict[str, Any]) -> PackagingRequest:
    def placed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.replace("ROOT", str(tiny.base.parent)).replace("RUN", str(tiny.run))

    return tiny.request(**{name: placed(value) for name, value in fields.items()})


@pytest.mark.parametrize("case", REQUESTS)
def test_predicted_names_are_the_names_that_stages_give(tiny: TinyRun, tmp_path: Path, case: str) -> None:
    shutil.copytree(tiny.base, tiny.base.parent / "base@v1")
    if "full weights" in case:
        shutil.copytree(tiny.base, tiny.run / "checkpoint-20")
    request, options = resolve_request(filled_in(tiny, REQUESTS[case]))
    planned = planned_outputs(request, options, InputNames.of(request, options, chosen="checkpoint-10"))
    run_stages(request, tmp_path / "scratch", settings=stage_settings(tmp_path / "home", verify_load=False))
    assert sorted(output.name for output in planned) == sorted(path.name for path in tiny.output.iterdir())


@pytest.mark.parametrize("case", REQUESTS)
def test_the_console_shows_the_names_of_the_contract(tiny: TinyRun, case: str) -> None:
    request, options = resolve_request(filled_in(tiny, REQUESTS[case]))
    form = NewJobForm.of_request(request, BUILTIN_TEMPLATES[request.template])
    switches = options.model_dump(exclude={"quant_types"})
    types = [quant.value for quant in options.quant_types]
    shown = prospect.foresee(form, form.base_model, switches, types, PathAnswers())
    planned = planned_outputs(request, options, InputNames.of(request, options))
    assert [file.name for file in shown.files] == [output.name for output in planned if output.kind not in RECORDS]


def test_console_and_stages_ask_the_same_function() -> None:
    from worker.stages import prepare

    for module in (prospect, prepare):
        assert vars(module)["planned_outputs"] is planned_outputs
