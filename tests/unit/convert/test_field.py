"""The architectures of the conversion package, saved by transformers 5, convert and work in llama.cpp, or are refused.

A tenth of them each day, and a thirtieth through whole jobs; ``TRAINPACK_FIELD_DAY`` sets the day (an ISO date,
or ``all``).
``python -m tests.bench field`` takes every one through a whole job.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api_client.contract.errors import PackagingError
from tests.field.architectures import NotBuiltError, chosen, save_convertible
from tests.field.cells import UNCAUGHT, YES, cells
from tests.field.page import recorded
from tests.field.proven import PROVEN
from tests.field.vocabularies import known_with_ends
from worker.models.verify.ask import Question
from worker.models.verify.load import prove

DAY = os.environ.get("TRAINPACK_FIELD_DAY") or datetime.now(UTC).date().isoformat()
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open


@pytest.mark.parametrize("architecture", chosen(DAY))
def test_an_architecture_converts_and_works_or_is_refused_by_name(tmp_path: Path, architecture: str) -> None:
    print(f"{architecture}, chosen for TRAINPACK_FIELD_DAY={DAY}")
    outcome = _outcome(architecture, tmp_path)
    print(outcome)
    assert architecture not in PROVEN or outcome.startswith("works"), outcome
    if outcome.startswith("not built"):
        pytest.skip(f"{architecture} is {outcome}")


def _outcome(architecture: str, directory: Path) -> str:
    try:
        with known_with_ends():
            save_convertible(architecture, directory)
        return f"works: it {prove(Question(str(directory / 'base.gguf'), max_tokens=2))}"
    except NotBuiltError as error:
        return f"not built here: {error}"
    except PackagingError as error:
        return f"refused: {error.code}: {error.message}"


@pytest.mark.parametrize("architecture", [name for name in chosen(DAY, 30) if name in recorded()])
def test_every_cell_of_the_page_holds(tmp_path: Path, architecture: str) -> None:
    """A thirtieth each day, whole jobs: what the page calls right must be right, and nothing may fail uncaught."""
    print(f"{architecture}, chosen for TRAINPACK_FIELD_DAY={DAY}")
    found = cells(architecture, tmp_path)
    assert not [cell for cell in found.values() if cell.startswith(UNCAUGHT)], found
    right = {column for column, cell in recorded()[architecture].items() if cell == YES}
    assert right <= {column for column, cell in found.items() if cell == YES}, found


def test_the_days_take_turns_and_a_day_is_the_same_again() -> None:
    days = [chosen(f"2026-11-{day:02}") for day in range(1, 11)]
    assert sorted(name for names in days for name in names) == list(chosen("all"))
    assert chosen("2026-11-11") == days[0]
