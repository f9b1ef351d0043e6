"""Which entries of a job's log its page shows: by kind, level and text; the newest, those before one, or around one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from api_client.console.pages.job_view import LOG_KINDS, OTHER_KINDS, kind_group
from api_client.contract.events import Event, EventKind
from api_client.words.formatting import clean

SHOWN: Final = 500
LEVELS: Final = ("debug", "info", "warning", "error")
_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True)
class LogQuestion:
    """What of a log is asked for.

    Attributes:
        groups: Kinds, as :func:`kind_group` has them.
        level: The lowest level shown.
        find: Text that an entry has to hold, whatever its case.
        before: Only entries before this one.
        at: An entry to show with those around it.
    """

    groups: frozenset[str]
    level: str = "debug"
    find: str = ""
    before: str = ""
    at: str = ""

    @classmethod
    def of(cls, kinds: Sequence[str] | None, level: str, find: str, before: str, at: str) -> LogQuestion:
        """From an address; a level that does not exist is none."""
        groups = frozenset(kinds or (*(kind.value for kind in LOG_KINDS), OTHER_KINDS))
        level = level if level in LEVELS else LEVELS[0]
        return cls(groups, level, find.strip()[:_MOST_CHARACTERS], before[:40], at[:40])

    @property
    def narrow(self) -> bool:
        """Whether text or level leave something out that a script cannot show again."""
        return bool(self.find or self.level != LEVELS[0])

    def takes(self, event: Event) -> bool:
        """Whether an entry is shown. Progress is shown at the stages, not in the log."""
        return (
            event.kind is not EventKind.PROGRESS
            and kind_group(event.kind) in self.groups
            and LEVELS.index(event.level) >= LEVELS.index(self.level)
            and self.find.casefold() in event.message.casefold()
        )

    def address(self, before: str = "") -> str:
        """The query of this question, for the entries before one; without one for the newest."""
        values = {"level": self.level if self.level != LEVELS[0] else "", "find": self.find, "before": before}
        every = {*(kind.value for kind in LOG_KINDS), OTHER_KINDS}
        kinds = [("kind", kind) for kind in sorted(self.groups)] if self.groups != every else []
        return urlencode([*kinds, *((key, value) for key, value in values.items() if value)])


@dataclass(frozen=True)
class LogPart:
    """Entries to show, and the question for older and for newer ones where there are any."""

    entries: Sequence[Event]
    older: str | None
    newest: bool


def part_of(events: Sequence[Event], asked: LogQuestion) -> LogPart:
    """Choose the entries."""
    taken = [event for event in events if asked.takes(event)]
    ids = [event.id for event in taken]
    end = len(taken)
    if asked.before in ids:
        end = ids.index(asked.before)
    elif asked.at in ids:
        end = min(len(taken), ids.index(asked.at) + SHOWN // 2)
    start = max(0, end - SHOWN)
    older = asked.address(ids[start]) if start > 0 else None
    return LogPart(taken[start:end], older, newest=end == len(taken))


def log_lines(events: Iterator[Event]) -> Iterator[str]:
    """The whole log as text, a line an entry; further lines of a message are indented."""
    for event in events:
        if event.kind is EventKind.PROGRESS:
            continue
        stage = f" {event.stage.value}" + (f"/{event.attempt}" if event.attempt else "") if event.stage else ""
        message = clean(event.message).replace("\n", "\n    ")
        when = event.time.isoformat(timespec="milliseconds")
        yield f"{when} {event.level:<7} [{event.kind.value}{stage}] {message}\n"
