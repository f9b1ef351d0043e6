"""A job with fits that is stopped in the middle of its sensitivities, and of its choice, goes on where it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.job import StageName
from tests.harness import RecordingReporter, run_stages
from tests.unit.stages.conftest import TinyRun
from worker.stages.context import StageResult
from worker.stop import StopRequested

FITS = ["fit:like:Q5_0", "fit:like:Q4_0"]


@dataclass
class Interrupting(RecordingReporter):
    """Asks to stop once a line of a text was logged, or so many steps were told."""

    line: str = ""
    after: int = 0

    def should_stop(self) -> bool:
        """Whether it has come so far."""
        said = any(self.line in message for _, message in self.lines)
        return (bool(self.line) and said) or 0 < self.after <= len(self.steps)


def digests(results: dict[StageName, StageResult], stage: StageName) -> dict[str, str]:
    return {artifact.name: artifact.sha256 for artifact in results[stage].artifacts}


def wanted(tiny: TinyRun) -> Any:
    return tiny.request(quant_types=FITS, imatrix={"chunks": 1}, fit={"types": "Q4_0,Q5_0,Q8_0"})


def test_sensitivities_go_on_with_the_layer_at_which_they_were_stopped(tiny: TinyRun, tmp_path: Path) -> None:
    whole = RecordingReporter()
    before = run_stages(wanted(tiny), tmp_path / "a", until=StageName.IMATRIX)
    made = run_stages(wanted(tiny), tmp_path / "a", until=StageName.SENSITIVITY, reporter=whole, done=before)
    other = run_stages(wanted(tiny), tmp_path / "b", until=StageName.IMATRIX)
    stopping = Interrupting(after=len(whole.steps) * 5 // 6)
    with pytest.raises(StopRequested):
        run_stages(wanted(tiny), tmp_path / "b", until=StageName.SENSITIVITY, reporter=stopping, done=other)
    assert any((tmp_path / "b/sensitivity").iterdir())
    again = RecordingReporter()
    resumed = run_stages(wanted(tiny), tmp_path / "b", until=StageName.SENSITIVITY, reporter=again, done=other)
    assert digests(resumed, StageName.SENSITIVITY) == digests(made, StageName.SENSITIVITY)
    assert len(again.steps) < len(whole.steps)
    assert again.steps[-1][:2] == whole.steps[-1][:2]


def test_fits_that_were_decided_before_a_stop_are_not_decided_again(tiny: TinyRun, tmp_path: Path) -> None:
    before = run_stages(wanted(tiny), tmp_path, until=StageName.SENSITIVITY)
    stopping = Interrupting(line=f"{FITS[0]}: ")
    with pytest.raises(StopRequested):
        run_stages(wanted(tiny), tmp_path, until=StageName.QUANTIZE, reporter=stopping, done=before)
    kept = json.loads((tmp_path / "fits.json").read_text())["fits"]
    assert list(kept) == FITS[:1]
    again = RecordingReporter()
    resumed = run_stages(wanted(tiny), tmp_path, until=StageName.QUANTIZE, reporter=again, done=before)
    assert len([message for _, message in stopping.lines if "tensors priced" in message]) == 1
    assert not [message for _, message in again.lines if "tensors priced" in message]
    one, other = ([step for step in told.steps if step[2] == "tokens"] for told in (stopping, again))
    assert 0 < len(other) < 1.5 * len(one)  # those of the second fit alone
    files = {file.quant_type: file for file in resumed[StageName.QUANTIZE].artifacts if "fit" in file.facts}
    assert files.keys() == set(FITS)
    assert files[FITS[0]].facts["fit"]["candidates"] == [
        {"name": each["name"], "predicted_kld": each["predicted"], "kld": each["divergence"]["mean_kld"]}
        for each in kept[FITS[0]]["measured"]
    ]
