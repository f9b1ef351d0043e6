"""The steps from training to file, in order, and what was found at each."""

from __future__ import annotations

from collections.abc import Sequence

from api_client.contract.quality import OriginStep, StepState, StepWord

ORDER = tuple(StepWord)


def same(step: StepWord, fact: str) -> OriginStep:
    """Nothing differs; ``fact`` says how much was compared."""
    return OriginStep(step=step, state=StepState.SAME, fact=fact)


def differs(step: StepWord, fact: str) -> OriginStep:
    """Something differs; ``fact`` names the first place."""
    return OriginStep(step=step, state=StepState.DIFFERS, fact=fact)


def not_checked(step: StepWord, reason: str) -> OriginStep:
    """It could not be compared here."""
    return OriginStep(step=step, state=StepState.NOT_CHECKED, fact=reason)


def in_order(steps: Sequence[OriginStep]) -> tuple[OriginStep, ...]:
    """Along the way from training to file."""
    return tuple(sorted(steps, key=lambda step: ORDER.index(step.step)))
