"""The mixture rules of llama.cpp b11434 (``llama-quant.cpp``), as data.

A rule is a type and the condition under which it is taken; of a list of rules the first that holds wins, and where none
holds the quant type's default type stays. Conditions are small functions of a :class:`TensorPosition`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from api_client.contract.quant_types import QuantType
from worker.models.gguf.types import GGMLType
from worker.models.mixture.model import ModelFacts
from worker.models.mixture.names import Category

_Q, _T, _C = QuantType, GGMLType, Category


@dataclass(frozen=True, slots=True)
class TensorPosition:
    """What a condition may look at.

    ``index`` of ``total`` is the tensor's place among those of its kind: the running count of such tensors, or the
    layer number in its name.
    """

    model: ModelFacts
    has_imatrix: bool
    index: int
    total: int


Condition = Callable[[TensorPosition], bool]


class Rule(NamedTuple):
    """A type and when to take it."""

    type: GGMLType
    condition: Condition


def always(_: TensorPosition) -> bool:
    """No condition."""
    return True


def grouped(place: TensorPosition) -> bool:
    """Four or more query heads share a KV head: value projections are small, bits for them are cheap."""
    return place.model.heads_per_kv_head >= 4


def grouped_or_experts(place: TensorPosition) -> bool:
    """As :func:`grouped`, or four or more experts: attention is a small part of such a model."""
    return grouped(place) or place.model.expert_count >= 4


def eight_experts(place: TensorPosition) -> bool:
    """Exactly eight experts (Mixtral and its like)."""
    return place.model.expert_count == 8


def falcon(place: TensorPosition) -> bool:
    """The architecture is Falcon, whose feed-forward layers bear fewer bits."""
    return place.model.architecture == "falcon"


def without_imatrix(place: TensorPosition) -> bool:
    """No importance matrix is given."""
    return not place.has_imatrix


def first_eighth(place: TensorPosition) -> bool:
    """Among the first eighth of its kind."""
    return place.index < place.total // 8


def first_sixteenth(place: TensorPosition) -> bool:
    """Among the first sixteenth of its kind."""
    return place.index < place.total // 16


def middle(place: TensorPosition) -> bool:
    """Neither in the first nor in the last eighth of its kind."""
    return place.total // 8 <= place.index < 7 * place.total // 8


def more_bits(place: TensorPosition) -> bool:
    """First eighth, last eighth, and every third in between: where quality is won most cheaply."""
    eighth = place.total // 8
    return place.index < eighth or place.index >= 7 * place.total // 8 or (place.index - eighth) % 3 == 2


def among_first(count: int) -> Condition:
    """One of the first ``count`` of its kind."""
    return lambda place: place.index < count


def both(first: Condition, second: Condition) -> Condition:
    """Both conditions hold."""
    return lambda place: first(place) and second(place)


def either(first: Condition, second: Condition) -> Condition:
    """At least one of the conditions holds."""
    return lambda place: first(place) or second(place)


def no(condition: Condition) -> Condition:
    """The condition does not hold."""
    return lambda place: not condition(place)


DEFAULT_TYPE: dict[QuantType, GGMLType] = {
    _Q.F32: _T.F32,
    _Q.F16: _T.F16,
    _Q.BF16: _T.BF16,
    _Q.Q4_0: _T.Q4_0,
    _Q.Q4_1: _T.Q4_1,
    _Q.Q5_0: _T.Q5_0,
    _Q.Q5_1: _T.Q5_1,
    _Q.Q8_0: _T.Q8_0,
    _Q.Q2_K: _T.Q2_K,
    _Q.Q2_K_S: _T.Q2_K,
    _Q.Q3_K_S: _T.Q3_K,
    _Q.Q3_K_M: _T.Q3_K,
    _Q.Q3_K_L: _T.Q3_K,
    _Q.Q4_K_S: _T.Q4_K,
    _Q.Q4_K_M: _T.Q4_K,
    _Q.Q5_K_S: _T.Q5_K,
    _Q.Q5_K_M: _T.Q5_K,
    _Q.Q6_K: _T.Q6_K,
    _Q.IQ4_NL: _T.IQ4_NL,
    _Q.IQ4_XS: _T.IQ4_XS,
    _Q.IQ3_XXS: _T.IQ3_XXS,
    _Q.IQ3_XS: _T.IQ3_S,
    _Q.IQ3_S: _T.IQ3_S,
    _Q.IQ3_M: _T.IQ3_S,
    _Q.IQ2_XXS: _T.IQ2_XXS,
    _Q.IQ2_XS: _T.IQ2_XS,
    _Q.IQ2_S: _T.IQ2_XS,
    _Q.IQ2_M: _T.IQ2_S,
    _Q.IQ1_S: _T.IQ1_S,
    _Q.IQ1_M: _T.IQ1_M,
    _Q.MXFP4_MOE: _T.MXFP4,
    _Q.TQ1_0: _T.TQ1_0,
    _Q.TQ2_0: _T.TQ2_0,
    _Q.Q2_0: _T.Q2_0,
    _Q.Q1_0: _T.Q1_0,
}
"""Type of a tensor that no rule speaks of."""

BY_EXPERTS: dict[QuantType, tuple[GGMLType, GGMLType]] = {_Q.MXFP4_MOE: (_T.MXFP4, _T.Q8_0)}
"""Quant types that know no rules: type of experts' weights (tensors of three dimensions), and type of all else."""

SMALLEST: frozenset[QuantType] = frozenset({_Q.IQ1_S, _Q.IQ1_M, _Q.IQ2_XXS, _Q.IQ2_XS, _Q.IQ2_S, _Q.IQ2_M})
"""Quant types with rules of their own: they count tensors, never layers, and skip what all others get in the end."""

OUTPUT_TYPE: dict[QuantType, GGMLType] = dict.fromkeys((*sorted(SMALLEST), _Q.IQ3_XXS), _T.Q5_K)
"""Type of the output tensor, or of an embedding that is the output too, where it is not Q6_K."""

TOKEN_EMBEDDING_TYPE: dict[QuantType, GGMLType] = {
    **dict.fromkeys((_Q.IQ1_S, _Q.IQ1_M, _Q.IQ2_XXS, _Q.IQ2_XS), _T.Q2_K),
    **dict.fromkeys((_Q.IQ2_S, _Q.IQ2_M, _Q.IQ3_XXS), _T.IQ3_S),
    **dict.fromkeys((_Q.TQ1_0, _Q.TQ2_0, _Q.Q2_0), _T.Q4_K),
}
"""Type of an embedding beside an output tensor, where it is not the default type."""

_IN_8_EXPERTS = Rule(_T.Q5_K, both(eight_experts, no(falcon)))
_NOT_FALCON = no(falcon)

RULES: dict[Category, dict[QuantType, tuple[Rule, ...]]] = {
    _C.ATTENTION_V: {
        **dict.fromkeys(
            (_Q.IQ1_S, _Q.IQ1_M, _Q.IQ2_XXS, _Q.IQ2_XS), (Rule(_T.Q4_K, grouped_or_experts), Rule(_T.Q2_K, always))
        ),
        **dict.fromkeys((_Q.IQ2_S, _Q.IQ2_M), (Rule(_T.Q4_K, grouped_or_experts), Rule(_T.IQ3_S, always))),
        _Q.Q2_K: (Rule(_T.Q4_K, grouped), Rule(_T.Q3_K, always)),
        _Q.Q2_K_S: (Rule(_T.Q4_K, grouped),),
        _Q.IQ3_XXS: (Rule(_T.Q4_K, grouped), Rule(_T.IQ3_S, without_imatrix)),
        _Q.IQ3_XS: (Rule(_T.Q4_K, grouped),),
        _Q.IQ3_S: (Rule(_T.Q4_K, grouped),),
        _Q.IQ3_M: (Rule(_T.Q4_K, always),),
        _Q.Q3_K_M: (Rule(_T.Q5_K, among_first(2)), Rule(_T.Q4_K, always)),
        _Q.Q3_K_L: (Rule(_T.Q5_K, always),),
        _Q.IQ4_NL: (Rule(_T.Q5_K, grouped),),
        _Q.IQ4_XS: (Rule(_T.Q5_K, grouped),),
        _Q.Q4_K_S: (Rule(_T.Q5_K, among_first(4)),),
        _Q.Q4_K_M: (Rule(_T.Q6_K, more_bits),),
        _Q.Q5_K_M: (Rule(_T.Q6_K, more_bits),),
    },
    _C.ATTENTION_K: {
        **dict.fromkeys(_Q, (Rule(_T.Q8_0, eight_experts),)),
        **dict.fromkeys(SMALLEST, (Rule(_T.Q4_K, eight_experts),)),
        _Q.IQ3_XS: (Rule(_T.Q8_0, eight_experts), Rule(_T.IQ3_XXS, always)),
        _Q.IQ3_XXS: (Rule(_T.Q8_0, eight_experts), Rule(_T.IQ2_S, always)),
    },
    _C.ATTENTION_Q: {
        _Q.IQ3_XS: (Rule(_T.IQ3_XXS, always),),
        _Q.IQ3_XXS: (Rule(_T.IQ2_S, always),),
    },
    _C.ATTENTION_OUTPUT: {
        **dict.fromkeys((_Q.IQ2_XXS, _Q.IQ2_XS), (Rule(_T.Q5_K, eight_experts),)),
        **dict.fromkeys((_Q.IQ1_S, _Q.IQ1_M), (Rule(_T.Q5_K, eight_experts), Rule(_T.IQ2_XXS, always))),
        **dict.fromkeys((_Q.IQ2_S, _Q.IQ2_M), (Rule(_T.Q5_K, eight_experts), Rule(_T.IQ3_S, always))),
        **dict.fromkeys((_Q.Q3_K_S, _Q.Q4_K_S, _Q.Q4_K_M, _Q.IQ3_XS, _Q.IQ3_S, _Q.IQ4_NL, _Q.IQ4_XS), (_IN_8_EXPERTS,)),
        _Q.Q2_K: (_IN_8_EXPERTS, Rule(_T.Q3_K, _NOT_FALCON)),
        _Q.IQ3_XXS: (_IN_8_EXPERTS, Rule(_T.IQ3_S, _NOT_FALCON)),
        _Q.Q3_K_M: (_IN_8_EXPERTS, Rule(_T.Q4_K, _NOT_FALCON)),
        _Q.IQ3_M: (_IN_8_EXPERTS, Rule(_T.Q4_K, _NOT_FALCON)),
        _Q.Q3_K_L: (Rule(_T.Q4_K, falcon), Rule(_T.Q5_K, no(eight_experts))),
    },
    _C.FFN_DOWN: {
        **dict.fromkeys((_Q.IQ1_S, _Q.IQ1_M, _Q.IQ2_XXS, _Q.IQ2_XS), (Rule(_T.Q2_K, first_eighth),)),
        **dict.fromkeys((_Q.IQ2_S, _Q.IQ2_M), (Rule(_T.IQ3_S, first_eighth),)),
        _Q.Q2_K: (Rule(_T.Q3_K, always),),
        _Q.Q2_K_S: (Rule(_T.Q4_K, first_eighth),),
        _Q.IQ3_XXS: (Rule(_T.Q4_K, both(without_imatrix, first_eighth)), Rule(_T.Q3_K, without_imatrix)),
        _Q.IQ3_M: (Rule(_T.Q4_K, either(first_eighth, both(eight_experts, more_bits))),),
        _Q.Q3_K_M: (Rule(_T.Q5_K, first_sixteenth), Rule(_T.Q4_K, either(_NOT_FALCON, more_bits))),
        _Q.Q3_K_L: (Rule(_T.Q4_K, falcon), Rule(_T.Q5_K, always)),
        _Q.IQ4_NL: (Rule(_T.Q5_K, both(without_imatrix, first_eighth)),),
        _Q.IQ4_XS: (Rule(_T.Q5_K, both(without_imatrix, first_eighth)),),
        _Q.Q4_K_S: (Rule(_T.Q5_K, both(_NOT_FALCON, first_eighth)),),
        _Q.Q4_K_M: (
            Rule(_T.Q6_K, both(falcon, first_sixteenth)),
            Rule(_T.Q5_K, both(falcon, more_bits)),
            Rule(_T.Q6_K, both(_NOT_FALCON, more_bits)),
        ),
        _Q.Q5_K_M: (Rule(_T.Q6_K, more_bits),),
        _Q.Q4_0: (Rule(_T.Q4_1, both(no(without_imatrix), first_eighth)),),
        _Q.Q5_0: (Rule(_T.Q5_1, both(no(without_imatrix), first_eighth)),),
    },
    _C.FFN_UP: {_Q.IQ3_XS: (Rule(_T.IQ3_XXS, middle),)},
    _C.FFN_GATE: {_Q.IQ3_XS: (Rule(_T.IQ3_XXS, middle),)},
}
"""Rules by category and quant type."""

MORE_BITS_IN_70B: dict[GGMLType, GGMLType] = {_T.Q3_K: _T.Q5_K, _T.Q4_K: _T.Q5_K}
"""What a value projection gets instead, in a model called 70B."""

NARROWER_BLOCK: dict[GGMLType, GGMLType] = {
    **dict.fromkeys((_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S, _T.IQ4_XS), _T.IQ4_NL),
    **dict.fromkeys((_T.Q2_0, _T.Q2_K, _T.Q3_K, _T.TQ1_0, _T.TQ2_0), _T.Q4_0),
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}
"""Type with blocks of 32 for a row that its own blocks do not divide; F16 if 32 does not divide it either."""

WITHOUT_NARROWER = frozenset({_T.Q1_0})
"""Types of longer blocks that llama-quantize gives up on where they do not divide a row."""

NEEDS_IMATRIX = frozenset({_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS})
"""Types that llama.cpp refuses to make without an importance matrix, embeddings and the output tensor apart."""

NEEDS_IMATRIX_IN: dict[QuantType, frozenset[GGMLType]] = {_Q.Q2_K_S: NEEDS_IMATRIX | {_T.Q2_K}}
"""Further such types by quant type."""
