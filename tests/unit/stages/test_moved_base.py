"""A base model that a task names and that has moved is looked for where the run says; a given one is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from api_client.runs.base_models import named_base_models
from api_client.runs.files import LocalRunFiles
from tests.harness import RecordingReporter, run_stages, stage_settings
from tests.unit.stages.conftest import TinyRun


def prepared(
    tiny: TinyRun, tmp_path: Path, base: Path, reporter: RecordingReporter | None = None, *, given: bool = False
) -> str:
    """The base model's directory that ``prepare`` settles on, for a base that the task names or somebody has given."""
    task = None if given else {"task_id": "7", "status": "completed", "base_model": base, "output_dir": tiny.run}
    settings = stage_settings(tmp_path / "home", allowed_roots=(tmp_path,))
    done = run_stages(
        tiny.request(base_model=base, task=task),
        tmp_path / "scratch",
        until=StageName.PREPARE,
        settings=settings,
        reporter=reporter,
    )
    handed_over = done[StageName.PREPARE].prepared
    assert handed_over is not None
    return str(handed_over.base_dir)


def test_the_adapter_s_own_base_is_taken_and_said(tiny: TinyRun, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    old = tmp_path / "old" / "base"
    assert prepared(tiny, tmp_path, old, reporter) == str(tiny.base)
    [(level, line)] = [said for said in reporter.lines if str(old) in said[1]]
    assert level == "warning"
    assert f"taking {tiny.base}, which checkpoint-10/adapter_config.json names" in line


def test_a_base_that_somebody_gave_is_never_replaced(tiny: TinyRun, tmp_path: Path) -> None:
    for wrong, meant in ((tmp_path / "bsae", tiny.base), (tmp_path / "far" / "away" / "x", tiny.base)):
        with pytest.raises(PackagingError) as caught:
            prepared(tiny, tmp_path, wrong, given=True)
        assert caught.value.code is ErrorCode.BASE_MODEL_NOT_FOUND
        assert caught.value.message == f"base_model: {wrong} does not exist; did you mean {meant}?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("args.json", '{{"model": "{base}"}}'),
        ("training_args.yaml", "do_train: true\nmodel_name_or_path: '{base}'  # the base\n"),
        ("checkpoint-10/config.json", '{{"_name_or_path": "{base}"}}'),
    ],
)
def test_what_the_run_names_comes_after_it(tiny: TinyRun, tmp_path: Path, name: str, text: str) -> None:
    moved = tiny.base.rename(tmp_path / "moved base")
    (tiny.run / name).write_text(text.format(base=moved))
    assert prepared(tiny, tmp_path, tiny.base) == str(moved)


def test_one_that_is_there_is_not_looked_for_elsewhere(tiny: TinyRun, tmp_path: Path) -> None:
    (tiny.run / "args.json").write_text(json.dumps({"model": str(tmp_path)}))
    reporter = RecordingReporter()
    assert prepared(tiny, tmp_path, tiny.base, reporter) == str(tiny.base)
    assert not any(level == "warning" for level, _ in reporter.lines)


def test_a_place_that_jobs_may_not_read_is_not_taken(
    tiny: TinyRun, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tiny.base.rename(tmp_path_factory.mktemp("elsewhere") / "base")
    elsewhere = json.dumps({"model": str(moved)})
    for name, text in (("args.json", elsewhere), ("config.json", "[1"), ("training_args.yaml", "model: owner/name\n")):
        (tiny.run / name).write_text(text)
    with pytest.raises(PackagingError) as caught:
        prepared(tiny, tmp_path, tiny.base)
    assert caught.value.code is ErrorCode.BASE_MODEL_NOT_FOUND
    named = [one.location for one in named_base_models(LocalRunFiles(tiny.run), "checkpoint-10")]
    assert named == [str(tiny.base), str(moved), "owner/name"]
