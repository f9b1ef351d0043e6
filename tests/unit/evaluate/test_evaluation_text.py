"""The text that comes with trainpack: long, of every kind, unlike the calibration text, and used to its last tokens."""

from __future__ import annotations

from importlib import resources

from worker.models.evaluate.sequences import cut_text
from worker.models.evaluate.texts import shipped_parts

PARTS = ("chat", "code", "mathematics", "long prose", "Chinese", "other languages", "documents")


def test_it_is_long_in_every_part_and_shares_no_paragraph_with_the_calibration_text() -> None:
    parts = dict(shipped_parts())
    assert tuple(parts) == PARTS
    assert all(len(text.encode()) > 5000 for text in parts.values()), {name: len(t) for name, t in parts.items()}
    assert sum(len(text.encode()) for text in parts.values()) > 55_000, "20,000 tokens of SmolLM2"
    calibration = resources.files("worker.models.imatrix").joinpath("calibration.txt").read_text(encoding="utf-8")
    known = {paragraph.strip() for paragraph in calibration.split("\n") if len(paragraph) > 80}
    assert not [line for text in parts.values() for line in text.split("\n") if line.strip() in known]
    lines = [line for text in parts.values() for line in text.split("\n") if len(line) > 80]
    assert len(lines) == len(set(lines)), "nothing is said twice"


def test_a_short_tail_is_a_chunk_of_its_own_where_it_may_count() -> None:
    ids = list(range(1, 1201))
    whole = cut_text("a", ids, None, 512)
    assert [len(chunk.ids) for chunk in whole] == [512, 512]
    tailed = cut_text("a", ids, 0, 512, tail=True)
    assert [(len(chunk.ids), chunk.first_scored) for chunk in tailed] == [(512, 257), (512, 257), (177, 89)]
    assert all(chunk.ids[0] == 0 for chunk in tailed), "each begins as the model wants it"
    assert len(cut_text("a", ids[:1030], None, 512, tail=True)) == 2, "six tokens are no context"
