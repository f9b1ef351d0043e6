"""What of a partial file is good: digests of its beginning, one line per tensor.

A line says that the file's first ``end`` bytes have a sha256. The writer hashes the file in order anyway, so a line
costs nothing; after a crash the partial file is hashed again from its start and everything up to the last line that
still agrees is kept. A line written before its data reached the disk, a truncated or damaged partial file and a
damaged journal are all caught by that. The first line is a fingerprint over the inputs; a foreign one makes the
journal worthless.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

_FORMAT = 1


class Journal:
    """Append-only; call :meth:`close` at the end. Lines are flushed to the operating system, not to the disk."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self._file = file

    @classmethod
    def start(cls, path: Path, fingerprint: str) -> Journal:
        """Begin a new journal in place of any old one."""
        journal = cls(path, path.open("w", encoding="ascii"))
        journal._line({"format": _FORMAT, "fingerprint": fingerprint})
        return journal

    def add(self, end: int, sha256: str) -> None:
        """Note that the first ``end`` bytes of the partial file are written and have this digest."""
        self._line({"end": end, "sha256": sha256})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self, entry: dict[str, int | str]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def read_journal(path: Path, fingerprint: str) -> dict[int, str]:
    """Digests by end of prefix; empty where there is no journal, or one of other inputs, or a damaged first line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    entries = list(_parsed(lines))
    if not entries or entries[0] != {"format": _FORMAT, "fingerprint": fingerprint}:
        return {}
    known = {}
    for entry in entries[1:]:
        end, sha256 = entry.get("end"), entry.get("sha256")
        if isinstance(end, int) and isinstance(sha256, str):
            known[end] = sha256
    return known


def _parsed(lines: list[str]) -> list[dict[str, int | str]]:
    """The lines up to the first that is not a whole JSON object."""
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
    return entries
