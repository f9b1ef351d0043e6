"""The journal beside a partial file: what of it is good already, so that a later attempt need not make it again.

JSON lines. The first bears the form of journals and a fingerprint of everything that decides the file's bytes; what the
others say is the writer's. Nothing in it is believed: a journal of another form or fingerprint counts as none, it ends
at the first line that is not a whole JSON object, and the writer checks the file's bytes against every line. So a torn
last line, a lost page after a power failure or a foreign partial file cost work, never correctness.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from worker.storage.held import plain_opener

JOURNAL_FORM = 2
"""Raised whenever the form of journals changes; one of another form is worthless."""

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
Entry = Mapping[str, Any]


class Journal:
    """One journal. Lines are flushed to the operating system, not to the disk."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._head = {"form": JOURNAL_FORM, "fingerprint": fingerprint}
        self._file: IO[str] | None = None

    def load(self) -> list[Entry]:
        """What an earlier attempt noted; empty where there is no journal of this fingerprint."""
        try:
            with open(self.path, encoding="ascii", opener=plain_opener) as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        entries = _parsed(lines)
        return entries[1:] if entries and entries[0] == self._head else []

    def start(self, entries: Iterable[Entry] = ()) -> None:
        """Begin anew, in place of any old one, with what is known to be good.

        Raises:
            OSError: it cannot be written.
        """
        self._file = os.fdopen(plain_opener(str(self.path), _FLAGS), "w", encoding="ascii")
        for entry in (self._head, *entries):
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Note something; raises OSError as :meth:`start`."""
        if self._file is None:
            raise ValueError("the journal is not open")
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Keep it for a later attempt."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """It is of no use any more."""
        self.close()
        self.path.unlink(missing_ok=True)


def _parsed(lines: Iterable[str]) -> list[Entry]:
    """The lines up to the first that is not a whole JSON object."""
    entries: list[Entry] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    return entries
