"""The journal beside a partial file: which tensors it holds already, so that a later attempt need not make them again.

``<name>.journal`` is JSON lines. The first line bears the fingerprint of everything the bytes depend on; each further
line a finished tensor with the CRC-32 of its slabs. Nothing in it is believed: a journal of another fingerprint, or one
that does not parse, counts as none, and a tensor counts only if the partial file's bytes have the CRC-32 it states. So
a torn last line, a lost page after a power failure or a foreign partial file cost work, never correctness.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from worker.mixture.plan import OutputPlan
from worker.quantize.slabs import SLAB_ELEMENTS

JOURNAL_VERSION = 1
"""Raised whenever the journal's form, or the bytes that some type is encoded to, change."""


def fingerprint(source_identity: str, plan: OutputPlan, imatrix_sha256: str | None) -> str:
    """Digest of all that decides an output file's bytes. The planned header covers mixture, offsets and metadata."""
    facts = {
        "version": JOURNAL_VERSION,
        "source": source_identity,
        "quant_type": plan.mixture.quant_type.value,
        "header": hashlib.sha256(plan.header).hexdigest(),
        "imatrix": imatrix_sha256,
        "slab_elements": SLAB_ELEMENTS,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Journal:
    """An open journal."""

    def __init__(self, path: Path, expected: str) -> None:
        self._path = path
        self._expected = expected
        self._file: IO[str] | None = None

    def load(self) -> dict[int, tuple[int, ...]]:
        """CRC-32 values by tensor index, as far as the journal is of the expected fingerprint and readable."""
        found: dict[int, tuple[int, ...]] = {}
        try:
            lines = self._path.read_text("ascii").splitlines()
            if not lines or json.loads(lines[0]) != {"fingerprint": self._expected}:
                return {}
            for line in lines[1:]:
                entry = json.loads(line)
                found[int(entry["tensor"])] = tuple(int(value) for value in entry["crc32"])
        except (OSError, ValueError, KeyError, TypeError):
            return found
        return found

    def start(self, done: Mapping[int, tuple[int, ...]]) -> None:
        """Begin anew with the tensors known to be there.

        Raises:
            OSError: If it cannot be written.
        """
        self._file = self._path.open("w", encoding="ascii")
        self._write({"fingerprint": self._expected})
        for tensor, values in done.items():
            self.add(tensor, values)

    def add(self, tensor: int, values: tuple[int, ...]) -> None:
        """Note a finished tensor; raises OSError as :meth:`start`."""
        self._write({"tensor": tensor, "crc32": list(values)})

    def _write(self, entry: dict[str, object]) -> None:
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
        self._path.unlink(missing_ok=True)
