"""What transformers' Trainer really trained, from the run's directory to the answer that it learned, in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from api_client.contract.quality import QualityReport
from api_client.contract.request import PackagingRequest
from api_client.runs.files import LocalRunFiles
from api_client.runs.kinds import CheckpointKind
from api_client.runs.pick import pick
from tests.field.real_runs import save_base, scores, train_by_trainer
from tests.harness import run_stages
from tests.tiny import TAUGHT_ANSWER, TAUGHT_QUESTION, TEXT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("real") / "base")


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_run_of_transformers_trainer_answers_as_it_was_taught(base: Path, tmp_path: Path, full: bool) -> None:
    run = train_by_trainer(base, tmp_path / "run", full=full)
    losses = scores(run)
    picked = pick(str(run), lambda place: LocalRunFiles(Path(place)))
    assert Path(picked.location).name == f"checkpoint-{min(losses, key=losses.__getitem__)}"
    assert picked.kind is (CheckpointKind.FULL if full else CheckpointKind.ADAPTER)
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 20))
    request = PackagingRequest(
        template="quantize_base" if full else "merge_quantize",
        base_model=picked.location if full else base,
        checkpoint=None if full else picked.location,
        quant_types=["Q8_0"],
        output_dir=tmp_path / "out",
        evaluation={"text": tmp_path / "text.txt", "questions": {TAUGHT_QUESTION: TAUGHT_ANSWER}},
    )
    run_stages(request, tmp_path / "scratch")
    report = QualityReport.model_validate_json((tmp_path / "out" / "quality.json").read_bytes())
    [asked] = report.questions
    assert len(asked.answers) == 3
    assert {answer.text for answer in asked.answers} == {TAUGHT_ANSWER}
