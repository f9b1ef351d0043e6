"""Stopped, killed or disturbed work goes on from its journal and still gives the same bytes."""

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import PackagingError
from api_client.contract.fit import AnyQuantType
from api_client.contract.quant_types import QuantType
from tests.golden.models import build_imatrix
from tests.golden.record_files import RECORD, digest
from tests.unit.quantize.sources import leftovers
from worker.models.imatrix.load import load_imatrix
from worker.models.quantize.engine import quantize_file
from worker.setting import WorkSetting
from worker.stop import StopRequested
from worker.storage.journal import Journal

EXPECTED = json.loads(RECORD.read_text())["tied"]
KINDS = (QuantType.Q4_K_M, QuantType.Q8_0)


class StopAfter:
    """Asks to stop once a number of questions was answered with no."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def outputs(folder: Path) -> dict[AnyQuantType, Path]:
    return {kind: folder / f"m-{kind.value}.gguf" for kind in KINDS}


def assert_finished(result: Any, folder: Path) -> None:
    assert result.failed == {}
    for kind, outcome in result.outcomes.items():
        assert outcome.sha256 == digest(outcome.path) == EXPECTED[kind.value][0][1]
    assert leftovers(folder) == []


def stop_in_the_middle(tied: Path, folder: Path) -> None:
    with pytest.raises(StopRequested):
        quantize_file(tied, outputs(folder), setting=WorkSetting(should_stop=StopAfter(12)))
    assert leftovers(folder) == sorted(
        f"m-{kind.value}.gguf.{suffix}" for kind in KINDS for suffix in ("partial", "journal")
    )
    assert not any(path.exists() for path in outputs(folder).values())


def test_stopped_work_is_taken_up(tied: Path, tmp_path: Path) -> None:
    stop_in_the_middle(tied, tmp_path)
    result = quantize_file(tied, outputs(tmp_path))
    assert_finished(result, tmp_path)
    first, second = (outcome.resumed_tensors for outcome in result.outcomes.values())
    assert first == second >= 4  # of the 12 slabs asked for, those that no thread had begun yet were dropped


def test_work_stopped_again_and_again_ends(tied: Path, tmp_path: Path) -> None:
    for attempt in range(40):
        try:
            result = quantize_file(
                tied, outputs(tmp_path), setting=WorkSetting(should_stop=StopAfter(3 * attempt), threads=2)
            )
        except StopRequested:
            continue
        break
    assert_finished(result, tmp_path)


def test_work_of_a_killed_process_is_taken_up(tied: Path, tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from api_client.contract.quant_types import QuantType
from worker.models.quantize.engine import quantize_file
from worker.setting import WorkSetting
def report(progress):
    if progress.tensors_done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[2])
quantize_file(
    Path(sys.argv[1]),
    {QuantType(k): folder / f"m-{k}.gguf" for k in sys.argv[3:]},
    setting=WorkSetting(report=report, threads=1)
)
"""
    command = [sys.executable, "-c", script, str(tied), str(tmp_path), *(kind.value for kind in KINDS)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 4
    result = quantize_file(tied, outputs(tmp_path))
    assert_finished(result, tmp_path)
    assert all(outcome.resumed_tensors >= 9 for outcome in result.outcomes.values())


@pytest.mark.parametrize(
    ("which", "damage", "resumed"),
    [
        ("journal", lambda path: path.write_bytes(path.read_bytes()[:-20]), "all but one"),
        ("journal", lambda path: path.write_bytes(b"\xff\x00 no journal"), "none"),
        ("journal", lambda path: path.write_text('{"fingerprint": "of another model"}\n'), "none"),
        ("journal", lambda path: path.write_text("[]\n[]\n"), "none"),
        ("journal", lambda path: path.unlink(), "none"),
        ("partial", lambda path: path.write_bytes(b""), "none"),
        ("partial", lambda path: path.write_bytes(path.read_bytes() + b"more"), "all"),
        ("partial", lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "none"),
        ("partial", lambda path: path.write_bytes(b"\xff" * 4096 + path.read_bytes()[4096:]), "all"),
    ],
    ids=["torn", "garbage", "foreign", "list", "gone", "empty", "longer", "overwritten", "header"],
)
def test_damage_costs_work_never_correctness(
    tied: Path, tmp_path: Path, which: str, damage: Callable[..., Any], resumed: str
) -> None:
    stop_in_the_middle(tied, tmp_path)
    path = outputs(tmp_path)[QuantType.Q8_0]
    damage(path.with_name(f"{path.name}.{which}"))
    result = quantize_file(tied, outputs(tmp_path))
    assert_finished(result, tmp_path)
    kept = result.outcomes[QuantType.Q4_K_M].resumed_tensors
    assert result.outcomes[QuantType.Q8_0].resumed_tensors == {"all": kept, "all but one": kept - 1, "none": 0}[resumed]


def test_one_flipped_byte_in_a_partial_file_is_seen(tied: Path, tmp_path: Path) -> None:
    stop_in_the_middle(tied, tmp_path)
    path = outputs(tmp_path)[QuantType.Q8_0]
    partial = path.with_name(path.name + ".partial")
    content = bytearray(partial.read_bytes())
    content[40_000] ^= 1
    partial.write_bytes(content)
    result = quantize_file(tied, outputs(tmp_path))
    assert_finished(result, tmp_path)
    kept = result.outcomes[QuantType.Q4_K_M].resumed_tensors
    assert result.outcomes[QuantType.Q8_0].resumed_tensors == kept - 1


def test_another_matrix_or_another_source_begins_anew(tied: Path, tmp_path: Path) -> None:
    stop_in_the_middle(tied, tmp_path)
    matrix = load_imatrix(build_imatrix(tmp_path / "tied.imatrix.gguf", "tied"))
    result = quantize_file(tied, outputs(tmp_path), imatrix=matrix)
    for kind, outcome in result.outcomes.items():
        assert outcome.resumed_tensors == 0
        assert outcome.sha256 == EXPECTED[kind.value][1][1]

    again: dict[AnyQuantType, Path] = {kind: tmp_path / f"again-{kind.value}.gguf" for kind in KINDS}
    with pytest.raises(StopRequested):
        quantize_file(tied, again, setting=WorkSetting(should_stop=StopAfter(12)))
    touched = tmp_path / "touched.gguf"
    touched.write_bytes(tied.read_bytes())
    result = quantize_file(touched, again)
    assert all(outcome.resumed_tensors == 0 for outcome in result.outcomes.values())
    assert all(outcome.sha256 == EXPECTED[kind.value][0][1] for kind, outcome in result.outcomes.items())


def test_a_finished_file_is_replaced_only_when_the_new_one_is_complete(tied: Path, tmp_path: Path) -> None:
    path = outputs(tmp_path)[QuantType.Q8_0]
    path.write_text("an older result")
    with pytest.raises(StopRequested):
        quantize_file(tied, outputs(tmp_path), setting=WorkSetting(should_stop=StopAfter(5)))
    assert path.read_text() == "an older result"
    assert_finished(quantize_file(tied, outputs(tmp_path)), tmp_path)


def test_without_resuming_nothing_is_left_behind(tied: Path, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        quantize_file(tied, outputs(tmp_path), resumable=False, setting=WorkSetting(should_stop=StopAfter(5)))
    assert list(tmp_path.iterdir()) == []


def test_a_partial_file_that_is_in_use_is_left_alone(tied: Path, tmp_path: Path) -> None:
    path = outputs(tmp_path)[QuantType.Q8_0]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("somebody else's work")
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = quantize_file(tied, outputs(tmp_path))
    assert result.failed == {}
    assert digest(path) == EXPECTED["Q8_0"][0][1]
    assert partial.read_text() == "somebody else's work"
    assert leftovers(tmp_path) == [partial.name]


def test_a_journal_written_to_before_it_is_started_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not open"):
        Journal(tmp_path / "j", "f").add({"tensor": 0})


def test_errors_survive_the_way_to_another_process(tied: Path, tmp_path: Path) -> None:
    result = quantize_file(tied, {QuantType.Q8_0: tmp_path / "missing" / "m.gguf"})
    error = result.outcomes[QuantType.Q8_0].error
    assert error is not None
    assert PackagingError.from_dict(json.loads(json.dumps(error.to_dict()))).message == error.message
