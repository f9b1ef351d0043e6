"""How much text candidates of a fit are measured over."""

from __future__ import annotations

from collections.abc import Sequence

from worker.models.evaluate.sequences import TokenSequence

_TOKENS = 4096
"""Of a model of up to :data:`_WEIGHTS` weights; of a larger one fewer, so that measuring takes about as long."""
_WEIGHTS = 500_000_000
_LEAST_TOKENS = 1024


def last_tokens(sequences: Sequence[TokenSequence], weights: int) -> list[TokenSequence]:
    """Sequences from the end, since the evaluation of the files begins at the other end.

    Args:
        sequences: All of the text.
        weights: Number of the model's weights.
    """
    most = max(_LEAST_TOKENS, min(_TOKENS, _TOKENS * _WEIGHTS // max(1, weights)))
    taken: list[TokenSequence] = []
    tokens = 0
    for sequence in reversed(sequences):
        if taken and tokens + len(sequence.ids) > most:
            break
        taken.append(sequence)
        tokens += len(sequence.ids)
    return taken
