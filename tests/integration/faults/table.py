"""The fault table: what came of every stage under every fault, taken from the jobs of a real run.

``FAULT_TABLE=FILE python -m pytest tests/integration/faults`` writes it as Markdown. A test names its fault with
``@pytest.mark.fault("...")``; each of its jobs adds the stages that the fault reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from api_client import AttemptOutcome, Job, Stage, StageName, StageState

COLUMNS = [
    stage for stage in StageName if stage not in (StageName.IMATRIX, StageName.SENSITIVITY, StageName.EXPORT_LORA)
]


class FaultTable:
    """Rows by fault, cells by stage."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[StageName, Counter[str]]] = {}

    def add(self, fault: str, jobs: Iterable[Job]) -> None:
        """Note what became of the stages that the fault reached: those that labels name, or that ran again."""
        row = self._rows.setdefault(fault, {})
        for job in jobs:
            for stage in job.stages:
                if stage.attempts and (stage.name.value in job.request.labels or len(stage.attempts) > 1):
                    row.setdefault(stage.name, Counter())[cell(stage)] += 1

    def write(self, path: Path) -> None:
        """Write all rows as a Markdown table."""
        lines = ["| fault | " + " | ".join(column.value for column in COLUMNS) + " |"]
        lines.append("| --- " * (len(COLUMNS) + 1) + "|")
        for fault, row in sorted(self._rows.items()):
            cells = [" / ".join(sorted(row.get(column, {}))) or "-" for column in COLUMNS]
            lines.append(f"| {fault} | " + " | ".join(cells) + " |")
        path.write_text("\n".join(lines) + "\n", "utf-8")


def cell(stage: Stage) -> str:
    """Outcomes of a stage's attempts, equal ones in a row counted; the error's code where it failed."""
    words: list[str] = []
    for attempt in stage.attempts:
        word = attempt.outcome.value.replace("_", " ")
        if attempt.outcome is AttemptOutcome.FAILED and attempt.error:
            word = f"failed: `{attempt.error['code']}`"
        words.append(word)
    found = [f"{word} x{count}" if count > 1 else word for word, count in runs_of(words)]
    if stage.state is StageState.CANCELLED and "cancelled" not in words:
        found.append("cancelled")
    if (
        stage.state is StageState.FAILED
        and stage.error
        and AttemptOutcome.FAILED not in {a.outcome for a in stage.attempts}
    ):
        found.append(f"failed: `{stage.error['code']}`")
    return ", ".join(found)


def runs_of(words: Iterable[str]) -> list[tuple[str, int]]:
    """Equal neighbours put together."""
    found: list[tuple[str, int]] = []
    for word in words:
        if found and found[-1][0] == word:
            found[-1] = (word, found[-1][1] + 1)
        else:
            found.append((word, 1))
    return found
