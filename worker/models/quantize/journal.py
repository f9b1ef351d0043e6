"""What the journal of a quantized file says: which tensors it holds already.

A line bears a finished tensor's number and the CRC-32 of its slabs; a tensor counts only if the partial file's bytes
have the CRC-32 that is stated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from worker.models.mixture.plan import OutputPlan
from worker.models.quantize.lattice import Exactness
from worker.models.quantize.slabs import SLAB_ELEMENTS
from worker.storage.journal import Entry

JOURNAL_VERSION = 1
"""Raised whenever what a line says, or the bytes that some type is encoded to, change."""


@dataclass(frozen=True, slots=True)
class StatedTensor:
    """What a line says of a finished tensor.

    Attributes:
        crc32: Of its slabs.
        exactness: How much of it is exact, where that is counted.
    """

    crc32: tuple[int, ...]
    exactness: Exactness | None = None


def fingerprint(
    source_identity: str, plan: OutputPlan, imatrix_sha256: str | None, *, hits_lattice: bool = False
) -> str:
    """Digest of all that decides an output file's bytes. The planned header covers mixture, offsets and metadata."""
    facts = {
        "version": JOURNAL_VERSION,
        "source": source_identity,
        "quant_type": plan.mixture.quant_type.value,
        "header": hashlib.sha256(plan.header).hexdigest(),
        "imatrix": imatrix_sha256,
        "slab_elements": SLAB_ELEMENTS,
        **({"hits_lattice": True} if hits_lattice else {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tensor_entry(index: int, stated: StatedTensor) -> Entry:
    """The journal's line for a finished tensor."""
    counted = {} if stated.exactness is None else {"exactness": list(astuple(stated.exactness))}
    return {"tensor": index, "crc32": list(stated.crc32), **counted}


def stated_tensors(entries: Iterable[Entry]) -> dict[int, StatedTensor]:
    """What is said, by tensor index, up to the first line that has not the form of :func:`tensor_entry`."""
    stated: dict[int, StatedTensor] = {}
    for entry in entries:
        try:
            exactness = None
            if "exactness" in entry:
                weights, exact, stock, on_lattice = (int(count) for count in entry["exactness"])
                exactness = Exactness(weights, exact, stock, on_lattice)
            stated[int(entry["tensor"])] = StatedTensor(tuple(int(value) for value in entry["crc32"]), exactness)
        except (ValueError, KeyError, TypeError, OverflowError):
            break
    return stated
