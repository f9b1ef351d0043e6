"""One crash-safe file: taken up, held, suspended, given up or finished, and never misread."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest

from worker.models.convert.writer import write_plan
from worker.setting import WorkSetting
from worker.storage.partial import PartialFile

DATA = b"0123456789" * 10


class Whole:
    """A file of one tensor."""

    header = DATA
    name, offset, size_bytes, value = "t", len(DATA), 2 * len(DATA), None

    class Tensor:
        name, offset, size_bytes, value = "t", len(DATA), len(DATA), None

    tensors = (Tensor(),)

    @property
    def evaluator(self) -> Whole:
        return self

    def bytes_of(self, node: object) -> np.ndarray:
        return np.frombuffer(DATA, np.uint8)


def convert(path: Path) -> int:
    written = write_plan(Whole(), path, fingerprint="f", setting=WorkSetting(threads=1))
    assert path.read_bytes() == DATA + DATA
    return written.resumed_bytes


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_suspended_is_taken_up_with_what_was_noted(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "x", fingerprint="f")
    assert first.open() == []
    first.claim(100, 0, [{"n": 1}])
    first.write(memoryview(DATA), 0)
    first.note({"n": 2})
    first.suspend()
    assert names(tmp_path) == ["x.journal", "x.partial"]
    again = PartialFile(tmp_path / "x", fingerprint="f")
    assert again.open() == [{"n": 1}, {"n": 2}]
    assert again.read(100, 0) == DATA
    again.finish()
    assert (tmp_path / "x").read_bytes() == DATA
    again.discard()
    assert names(tmp_path) == ["x"], "a finished file is not given up"


def test_the_space_of_other_inputs_is_not_kept(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "x", fingerprint="f")
    first.open()
    first.claim(100, 0)
    first.write(memoryview(DATA), 0)
    first.suspend()
    other = PartialFile(tmp_path / "x", fingerprint="g")
    assert other.open() == []
    other.claim(50, 0)
    assert other.read(100, 0) == bytes(50)
    other.discard()
    assert names(tmp_path) == []


def test_two_conversions_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """A conversion whose worker was cut off may still write when the next attempt begins."""
    partial = tmp_path / "x.partial"
    partial.write_text("somebody else's work")
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        convert(tmp_path / "x")
    assert partial.read_text() == "somebody else's work"
    assert names(tmp_path) == ["x", "x.partial"]


@pytest.mark.parametrize(
    "lines",
    [
        [{"format": 1, "fingerprint": "f"}, {"end": 100, "sha256": "0" * 64}],
        [{"fingerprint": "f"}, {"tensor": 0, "crc32": [1]}],
    ],
    ids=["of a conversion", "of a quantization"],
)
def test_journals_of_the_version_before_are_not_read(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    (tmp_path / "x.partial").write_bytes(b"\xff" * 500)
    (tmp_path / "x.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert convert(tmp_path / "x") == 0
    assert names(tmp_path) == ["x"]
