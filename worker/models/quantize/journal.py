"""What the journal of a quantized file says: which tensors it holds already.

A line bears a finished tensor's number and the CRC-32 of its slabs; a tensor counts only if the partial file's bytes
have the CRC-32 that is stated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from worker.models.mixture.plan import OutputPlan
from worker.models.quantize.slabs import SLAB_ELEMENTS
from worker.storage.journal import Entry

JOURNAL_VERSION = 1
"""Raised whenever what a line says, or the bytes that some type is encoded to, change."""


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


def tensor_entry(index: int, values: tuple[int, ...]) -> Entry:
    """The journal's line for a finished tensor; ``values`` are the CRC-32 of its slabs."""
    return {"tensor": index, "crc32": list(values)}


def stated_tensors(entries: Iterable[Entry]) -> dict[int, tuple[int, ...]]:
    """CRC-32 values by tensor index, up to the first line that has not the form of :func:`tensor_entry`."""
    stated: dict[int, tuple[int, ...]] = {}
    for entry in entries:
        try:
            stated[int(entry["tensor"])] = tuple(int(value) for value in entry["crc32"])
        except (ValueError, KeyError, TypeError, OverflowError):
            break
    return stated
