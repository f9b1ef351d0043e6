"""The ggml types that a recipe may give a tensor, and the sets of them that a fit may choose from. Data, and its parse.

Bits per weight are those of a whole block; numbers and block sizes as files have them are the worker's
(``worker/models/gguf/types.py``).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.suggestions import did_you_mean, nearest


class TensorTypeInfo(NamedTuple):
    """One row of the table."""

    family: str
    """``k``, ``iq``, ``legacy``, ``trained`` (for weights trained on the type's own values) or ``float``."""
    bits_per_weight: float
    needs_imatrix: bool = False
    """Whether llama.cpp refuses to make it without an importance matrix, but for embeddings and head."""


_I = TensorTypeInfo

TENSOR_TYPES: Final[dict[str, TensorTypeInfo]] = {
    "Q2_K": _I("k", 2.625),
    "Q3_K": _I("k", 3.4375),
    "Q4_K": _I("k", 4.5),
    "Q5_K": _I("k", 5.5),
    "Q6_K": _I("k", 6.5625),
    "Q8_0": _I("k", 8.5),
    "IQ1_S": _I("iq", 1.5625, needs_imatrix=True),
    "IQ1_M": _I("iq", 1.75, needs_imatrix=True),
    "IQ2_XXS": _I("iq", 2.0625, needs_imatrix=True),
    "IQ2_XS": _I("iq", 2.3125, needs_imatrix=True),
    "IQ2_S": _I("iq", 2.5625, needs_imatrix=True),
    "IQ3_XXS": _I("iq", 3.0625, needs_imatrix=True),
    "IQ3_S": _I("iq", 3.4375),
    "IQ4_XS": _I("iq", 4.25),
    "IQ4_NL": _I("iq", 4.5),
    "Q4_0": _I("legacy", 4.5),
    "Q4_1": _I("legacy", 5.0),
    "Q5_0": _I("legacy", 5.5),
    "Q5_1": _I("legacy", 6.0),
    "MXFP4": _I("trained", 4.25),
    "Q2_0": _I("trained", 2.25),
    "TQ2_0": _I("trained", 2.0625),
    "TQ1_0": _I("trained", 1.6875),
    "Q1_0": _I("trained", 1.125),
    "F16": _I("float", 16.0),
    "BF16": _I("float", 16.0),
    "F32": _I("float", 32.0),
}
"""By ggml's name. Q8_0 goes with the K-quants, as it is what they end in above six bits."""

ALL: Final = "all"
FAMILIES: Final = ("k", "iq", "legacy", "trained", "float")
_ONLY_NAMED: Final = ("trained", "float")


def tensor_type(text: str) -> str:
    """A type's name as the table has it, from upper or lower case.

    Raises:
        PackagingError: ``tensor_type_unknown`` with the nearest name.
    """
    name = text.strip().upper()
    if name in TENSOR_TYPES:
        return name
    suggestion = nearest(name, TENSOR_TYPES, 0.4)
    raise PackagingError(
        ErrorCode.TENSOR_TYPE_UNKNOWN,
        f"unknown tensor type {text!r}" + did_you_mean(suggestion),
        remedy=f"Use one of {', '.join(TENSOR_TYPES)}.",
        fields={"type": text, "suggestion": suggestion},
    )


def type_set(text: str) -> tuple[str, ...]:
    """The types that ``k``, ``k+iq``, ``all`` or ``Q4_K,Q5_K,IQ4_XS`` names, those of fewer bits first.

    ``all`` is every quantized type for ordinary weights; the others and floats are only taken where they are named.

    Raises:
        PackagingError: ``tensor_type_unknown``.
    """
    chosen: set[str] = set()
    for part in text.replace("+", ",").split(","):
        word = part.strip().lower()
        if word == ALL:
            chosen |= {name for name, info in TENSOR_TYPES.items() if info.family not in _ONLY_NAMED}
        elif word in FAMILIES:
            chosen |= {name for name, info in TENSOR_TYPES.items() if info.family == word}
        else:
            chosen.add(tensor_type(part))
    order = list(TENSOR_TYPES)
    return tuple(sorted(chosen, key=lambda name: (TENSOR_TYPES[name].bits_per_weight, order.index(name))))
