"""Samples to measure on and samples to calibrate with. A matrix is never judged by what it was fitted to.

Where the trainer held data out, that is measured on. Else each sample's own digest decides, so that the same sample is
on the same side in every job, whatever file it stands in and in whatever order. What is measured on is kept out of the
calibration by digest, also where both come from different files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.models.evaluate.datasets import Sample, Samples, read_samples

MEASURED_BYTES = 64
"""Of the 256 values of a digest's first byte, those whose samples are measured on: a quarter."""


@dataclass(frozen=True)
class Shares:
    """Both sides, in the files' order.

    Attributes:
        measured: What files are measured on.
        calibration: What an importance matrix may be computed from.
        source: The file that is measured on, as it was read.
    """

    measured: Sequence[Sample]
    calibration: Sequence[Sample]
    source: Samples


def share_out(path: Path, held_out: Path | None) -> Shares:
    """Share a run's data out.

    Args:
        path: What it was trained on.
        held_out: What it was evaluated on, where that is another file.

    Raises:
        PackagingError: ``dataset_invalid``.
    """
    trained = read_samples(path)
    source = read_samples(held_out) if held_out is not None else trained
    measured = source.samples if held_out is not None else [s for s in trained.samples if _is_measured(s)]
    if not measured:  # a handful of samples, all on the other side
        measured = source.samples[:1]
    seen = {digest_of(sample) for sample in measured}
    return Shares(measured, [s for s in trained.samples if digest_of(s) not in seen], source)


def digest_of(sample: Sample) -> str:
    """SHA-256 of what a sample says, not of how its file writes it."""
    said = [[message["role"], message["content"]] for message in sample.messages] or sample.text
    return hashlib.sha256(json.dumps(said, ensure_ascii=True).encode()).hexdigest()


def _is_measured(sample: Sample) -> bool:
    return int(digest_of(sample)[:2], 16) < MEASURED_BYTES


def as_lines(samples: Iterable[Sample]) -> str:
    """Samples as JSON Lines, which :func:`read_samples` reads back as they are."""
    records = ({"messages": list(sample.messages)} if sample.messages else {"text": sample.text} for sample in samples)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
