"""Which of the two languages a request asks for."""

from __future__ import annotations

from api_client.words.language import Language


def accepted_language(header: str) -> Language:
    """The first of English and Chinese in the order of an ``Accept-Language`` header; English where it has neither."""
    wishes = []
    for part in header.split(","):
        tag, _, parameter = part.strip().lower().partition(";")
        wishes.append((-_quality(parameter), tag.partition("-")[0]))
    known = (tag for rank, tag in sorted(wishes, key=lambda wish: wish[0]) if tag in ("en", "zh") and rank)
    return Language(next(known, "en"))


def _quality(parameter: str) -> float:
    try:
        return float(parameter.strip().removeprefix("q=")) if parameter.strip() else 1.0
    except ValueError:
        return 0.0
