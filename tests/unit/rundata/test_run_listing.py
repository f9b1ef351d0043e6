"""The runs below directories: of every depth, in time and number bounded, with what is packaged of each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from api_client.runs.listing import MOST_SHOWN, list_runs
from tests.unit.contract.test_checkpoints import LOSSES, make_run

HOSTILE = "<b>run</b> \x1b[31m\u202e"
OLD = 1_700_000_000


def age(path: Path, seconds: int = OLD) -> None:
    """Let everything below a directory look unchanged since."""
    for directory, _, names in os.walk(path, topdown=False):
        for name in (*names, ""):
            os.utime(Path(directory, name), (seconds, seconds))


def test_runs_of_the_same_name_and_of_any_are_told_apart(tmp_path: Path) -> None:
    first, second = tmp_path / "red" / "run", tmp_path / "blue" / "team" / "run"
    make_run(first, LOSSES)
    make_run(second, {100: {"eval_loss": 0.5}})
    (second / "checkpoint-100" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/models/base"})
    )
    (second / "package" / "checkpoint-100").mkdir(parents=True)
    (second / "package" / "checkpoint-100" / "manifest.json").write_text("{}")
    (second / "package" / "half").mkdir()
    (tmp_path / HOSTILE / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "no run").mkdir()
    (tmp_path / ".hidden" / "checkpoint-1").mkdir(parents=True)
    age(tmp_path)
    os.utime(second, (OLD + 5, OLD + 5))

    found = list_runs([tmp_path, tmp_path / "missing"])
    assert found.runs[0].path == str(second)
    assert {run.path for run in found.runs} == {str(first), str(second), str(tmp_path / HOSTILE)}
    assert found.total == 3
    assert found.missing == (str(tmp_path / "missing"),)
    known = {run.path: run for run in found.runs}
    assert (known[str(first)].best, known[str(first)].metric, known[str(first)].score) == (
        "checkpoint-200", "eval_loss", 1.2,
    )  # fmt: skip
    assert known[str(first)].checkpoints == 3
    assert known[str(second)].base_model == "/models/base"
    assert known[str(second)].packaged == ("checkpoint-100",)
    assert [known[str(path)].status for path in (first, tmp_path / HOSTILE)] == ["ended", "no_weights"]
    assert [run.path for run in list_runs([tmp_path], search="TEAM").runs] == [str(second)]


def test_a_run_that_changes_is_running(tmp_path: Path) -> None:
    make_run(tmp_path / "now", LOSSES)
    assert [run.status for run in list_runs([tmp_path]).runs] == ["running"]


def test_five_thousand_runs_are_bounded_in_number_and_time(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"run-{number}" / "checkpoint-1").mkdir(parents=True)
    started = time.monotonic()
    found = list_runs([tmp_path], look_s=60)
    assert found.total == 5000
    assert len(found.runs) == MOST_SHOWN
    assert found.missing == ()
    whole_s = time.monotonic() - started

    started = time.monotonic()
    hurried = list_runs([tmp_path], look_s=0.02)
    assert time.monotonic() - started < max(1.0, whole_s)
    assert hurried.missing == (str(tmp_path),), "what did not answer in time is told"
    assert hurried.total < 5000
