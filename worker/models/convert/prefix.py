"""The journal of a file that is hashed in order: how much of its beginning is good.

A line says that the first ``end`` bytes have a sha256, which costs nothing, since the file is hashed in order anyway; a
later attempt hashes the partial file again from its start and keeps everything up to the last line that still agrees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from worker.storage.journal import Entry
from worker.storage.partial import PartialFile

_READ_BYTES = 8 * 1024 * 1024


def prefix_entry(end: int, sha256: str) -> Entry:
    """The journal's line: the first ``end`` bytes of the file are written and have this digest."""
    return {"end": end, "sha256": sha256}


def known_digests(entries: Iterable[Entry]) -> dict[int, str]:
    """Digests by end of prefix, of the lines that have the form of :func:`prefix_entry`."""
    known = {}
    for entry in entries:
        end, sha256 = entry.get("end"), entry.get("sha256")
        if isinstance(end, int) and isinstance(sha256, str):
            known[end] = sha256
    return known


def verified_prefix(file: PartialFile, boundaries: Sequence[int], known: Mapping[int, str]) -> tuple[Any, int]:
    """Hash the partial file as far as the journal vouches for it.

    Args:
        file: The file, open.
        boundaries: Where its tensors begin, and where it ends.
        known: What the journal says.

    Returns:
        The hash object over the good beginning, and its length in bytes; 0 where nothing is good.
    """
    running, good, length = hashlib.sha256(), hashlib.sha256(), 0
    position = 0
    for end in boundaries:
        if end not in known:
            break
        while position < end:
            piece = file.read(min(_READ_BYTES, end - position), position)
            if not piece:
                return good, length
            running.update(piece)
            position += len(piece)
        if running.hexdigest() != known[end]:
            break
        good, length = running.copy(), end
    return good, length
