"""Files appear complete or not at all; a stopped or killed conversion goes on where its beginning is good."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.conftest import Run
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import convert
from worker.models.convert.writer import write_plan
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested
from worker.storage.journal import Journal

HEADER = b"HEADER__" * 4


@dataclass(frozen=True)
class Part:
    name: str
    offset: int
    size_bytes: int
    value: int


@dataclass
class Plan:
    """A file of a few tensors, with gaps of zeros between them; notes what was made."""

    count: int = 6
    header: bytes = HEADER
    made: list[str] = field(default_factory=list)
    fail_at: str | None = None

    @property
    def tensors(self) -> list[Part]:
        return [Part(f"t{n}", 32 + n * 64, 50 + n % 14, n) for n in range(self.count)]

    @property
    def size_bytes(self) -> int:
        return 32 + self.count * 64

    @property
    def evaluator(self) -> Plan:
        return self

    def bytes_of(self, node: int) -> np.ndarray:
        name = f"t{node}"
        if name == self.fail_at:
            raise PackagingError(ErrorCode.BASE_MODEL_INVALID, f"{name} cannot be read")
        self.made.append(name)
        return np.full(50 + node % 14, 1 + node % 251, np.uint8)

    def expected(self) -> bytes:
        data = bytearray(self.size_bytes)
        data[: len(self.header)] = self.header
        for part in self.tensors:
            data[part.offset : part.offset + part.size_bytes] = bytes([1 + part.value % 251]) * part.size_bytes
        return bytes(data)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Progress:
    """Stops after a number of tensors; notes what was reported."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[tuple[float, float, str]] = []
        self._stop_after = stop_after

    def report(self, at: WorkProgress) -> None:
        self.reports.append((at.done, at.total, at.detail))

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.reports) >= self._stop_after


def write(plan: Plan, path: Path, progress: Progress | None = None, fingerprint: str = "f", threads: int = 1) -> Any:
    progress = progress or Progress()
    return write_plan(
        plan,
        path,
        fingerprint=fingerprint,
        setting=WorkSetting(threads=threads, report=progress.report, should_stop=progress.should_stop),
    )


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of these tensors at a time, so that a stop comes before the end."""
    monkeypatch.setattr("worker.models.convert.writer._AHEAD_BYTES", 130)


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A partial file and its journal, stopped after the third of six tensors."""
    path = tmp_path / "out.bin"
    with pytest.raises(StopRequested):
        write(Plan(), path, Progress(stop_after=1))
    assert not path.exists()
    return path, path.with_name("out.bin.partial"), path.with_name("out.bin.journal")


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_digest_and_reports(tmp_path: Path, threads: int) -> None:
    plan, progress = Plan(), Progress()
    written = write(plan, tmp_path / "out.bin", progress, threads=threads)
    assert (tmp_path / "out.bin").read_bytes() == plan.expected()
    assert written.sha256 == hashlib.sha256(plan.expected()).hexdigest()
    assert written.resumed_bytes == 0
    assert [name for _, _, name in progress.reports] == [f"t{n}" for n in range(6)]
    assert progress.reports[-1][:2] == (plan.size_bytes, plan.size_bytes)
    assert names_in(tmp_path) == ["out.bin"]


def test_stopped_pass_is_resumed(stopped: tuple[Path, Path, Path]) -> None:
    path, _, journal = stopped
    plan = Plan()
    finished = len(journal.read_text().splitlines()) - 2  # fingerprint, header
    assert finished >= 1
    written = write(plan, path)
    assert path.read_bytes() == plan.expected()
    assert written.sha256 == hashlib.sha256(plan.expected()).hexdigest()
    assert written.resumed_bytes == 32 + finished * 64
    assert plan.made == [f"t{n}" for n in range(finished, 6)]
    assert names_in(path.parent) == ["out.bin"]


def test_nothing_is_kept_of_other_inputs(stopped: tuple[Path, Path, Path]) -> None:
    path, _, _ = stopped
    written = write(Plan(), path, fingerprint="another")
    assert written.resumed_bytes == 0
    assert path.read_bytes() == Plan().expected()


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "file cut short": ("partial", lambda data: data[:40]),
    "header changed": ("partial", lambda data: b"x" + data[1:]),
    "file empty": ("partial", lambda data: data[:0]),
    "file missing": ("partial", None),
    "file too long": ("partial", lambda data: data + b"more than the file has"),
    "journal cut in its first line": ("journal", lambda data: data[:10]),
    "journal is not text": ("journal", lambda data: data[:0] + b"\xff\xfe"),
    "journal cut in its last line": ("journal", lambda data: data + b'{"end": 96, "sha'),
    "journal holds other things": ("journal", lambda data: data + b'["end"]\n{"end": "a", "sha256": 3}\n'),
    "journal missing": ("journal", None),
    "journal with wrong digests": ("journal", lambda data: data.replace(b'"sha256": "', b'"sha256": "0')),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_file_is_right(stopped: tuple[Path, Path, Path], damage: str) -> None:
    path, partial, journal = stopped
    which, change = DAMAGE[damage]
    file = {"partial": partial, "journal": journal}[which]
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    written = write(Plan(), path)
    assert path.read_bytes() == Plan().expected()
    assert written.sha256 == hashlib.sha256(Plan().expected()).hexdigest()
    assert names_in(path.parent) == ["out.bin"]


def test_good_beginning_is_kept_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with pytest.raises(StopRequested):
        write(Plan(count=50), path, Progress(stop_after=30))
    partial = path.with_name("out.bin.partial")
    data = bytearray(partial.read_bytes())
    data[32 + 20 * 64 + 5] ^= 1
    partial.write_bytes(data)
    plan = Plan(count=50)
    assert write(plan, path).resumed_bytes == 32 + 20 * 64
    assert plan.made[0] == "t20"
    assert path.read_bytes() == plan.expected()


def test_second_stop_keeps_what_the_first_had(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with pytest.raises(StopRequested):
        write(Plan(count=400), path, Progress(stop_after=5))
    first = len(path.with_name("out.bin.journal").read_text().splitlines())
    with pytest.raises(StopRequested):
        write(Plan(count=400), path, Progress(stop_after=1))
    assert len(path.with_name("out.bin.journal").read_text().splitlines()) > first
    plan = Plan(count=400)
    write(plan, path)
    assert path.read_bytes() == plan.expected()


@pytest.mark.parametrize("threads", [1, 3])
def test_failure_removes_what_was_begun(tmp_path: Path, threads: int) -> None:
    (tmp_path / "out.bin").write_bytes(b"of an earlier job")
    with pytest.raises(PackagingError, match="t3 cannot be read"):
        write(Plan(fail_at="t3"), tmp_path / "out.bin", threads=threads)
    assert (tmp_path / "out.bin").read_bytes() == b"of an earlier job"
    assert names_in(tmp_path) == ["out.bin"]


def test_full_disk_is_told_in_numbers_before_anything_is_written(tmp_path: Path) -> None:
    plan = Plan()
    size = 1 << 60

    class Huge(Plan):
        size_bytes = size

    with pytest.raises(PackagingError) as caught:
        write(Huge(), tmp_path / "out.bin")
    assert caught.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT
    assert caught.value.fields["needed_bytes"] == size
    assert caught.value.fields["free_bytes"] < size
    assert plan.made == []
    assert names_in(tmp_path) == []


def test_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(PackagingError) as caught:
        write(Plan(), tmp_path / "missing" / "out.bin")
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_tensors_ahead_of_hashing_are_bounded(tmp_path: Path) -> None:
    """With a window of two tensors, a third is begun only when the first is hashed."""
    plan = Plan()
    seen: list[int] = []

    def report(at: WorkProgress) -> None:
        seen.append(len(plan.made))

    write_plan(plan, tmp_path / "out.bin", fingerprint="f", setting=WorkSetting(threads=6, report=report))
    assert all(made <= number + 2 for number, made in enumerate(seen)), seen


def test_journal_of_another_format_is_worthless(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "f")
    journal.start()
    journal.add({"end": 10, "sha256": "aa"})
    journal.close()
    assert Journal(path, "f").load() == [{"end": 10, "sha256": "aa"}]
    assert Journal(path, "g").load() == []
    path.write_text(path.read_text().replace('"form": 2', '"form": 3'))
    assert Journal(path, "f").load() == []


def test_conversion_stops_between_tensors_and_resumes(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    overlay = run.overlay(tmp_path / "overlay")
    whole = convert(run.base, tmp_path / "whole.gguf", overlay=overlay, naming=Naming(model_name="M"))
    progress = Progress(stop_after=1)
    with pytest.raises(StopRequested):
        convert(
            run.base,
            tmp_path / "out.gguf",
            overlay=overlay,
            naming=Naming(model_name="M"),
            setting=WorkSetting(threads=1, report=progress.report, should_stop=progress.should_stop),
        )
    resumed = convert(run.base, tmp_path / "out.gguf", overlay=overlay, naming=Naming(model_name="M"))
    assert resumed.resumed_bytes > 0
    assert resumed.sha256 == whole.sha256
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_conversion_of_another_overlay_does_not_resume(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    progress = Progress(stop_after=1)
    with pytest.raises(StopRequested):
        convert(
            run.base,
            tmp_path / "out.gguf",
            setting=WorkSetting(threads=1, report=progress.report, should_stop=progress.should_stop),
        )
    result = convert(run.base, tmp_path / "out.gguf", overlay=run.overlay(tmp_path / "overlay"))
    assert result.resumed_bytes == 0
