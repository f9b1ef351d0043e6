"""What is kept of every scored token: small enough to keep all, so that every figure is exact and can be made again.

For the reference: the log-probability of the token that really follows. For every other model: its own, the
Kullback-Leibler divergence ``KL(reference || model)`` of the whole distribution in nats, and whether both have the same
most probable token. The definitions are those of ``llama-perplexity --kl-divergence``, which stores the reference's
logits in 16 bits; here they never leave memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_SLAB_VALUES = 1 << 23
"""Logits that are worked on at a time: 32 MiB as float32, of which comparing makes half a dozen."""


@dataclass(frozen=True)
class TokenScores:
    """One model's scores, one entry a scored token.

    Attributes:
        log_probability: Of the token that follows, natural logarithm, float32 ``(n,)``.
        kld: ``KL(reference || model)`` in nats, float32 ``(n,)``; zeros for the reference itself.
        same_top: Whether the most probable token is the reference's, bool ``(n,)``.
    """

    log_probability: NDArray[np.float32]
    kld: NDArray[np.float32]
    same_top: NDArray[np.bool_]

    @classmethod
    def joined(cls, pieces: Sequence[TokenScores]) -> TokenScores:
        """Scores of several batches, one after the other."""
        return cls(
            np.concatenate([piece.log_probability for piece in pieces]),
            np.concatenate([piece.kld for piece in pieces]),
            np.concatenate([piece.same_top for piece in pieces]),
        )


@dataclass
class ReferenceBatch:
    """The reference's distribution over one batch, kept until all others have been compared with it.

    Attributes:
        logits: float32 ``(n, vocabulary)``.
        targets: Tokens that follow, int64 ``(n,)``.
    """

    logits: torch.Tensor
    targets: torch.Tensor

    def own_scores(self) -> TokenScores:
        """The reference against itself: no divergence, to the last bit."""
        return self.compare(self.logits)

    def compare(self, logits: torch.Tensor) -> TokenScores:
        """Another model's logits ``(n, vocabulary)`` over the same positions."""
        slab = max(1, _SLAB_VALUES // logits.shape[1])
        klds, tops, chosen = [], [], []
        for start in range(0, len(self.targets), slab):
            rows = slice(start, start + slab)
            mine, other = self.logits[rows], logits[rows].float()
            # both the same way, so that equal logits give zero and not the rounding of a normaliser
            expected, own = torch.log_softmax(mine, dim=-1), torch.log_softmax(other, dim=-1)
            klds.append((expected.exp() * (expected - own)).sum(dim=-1, dtype=torch.float64))
            tops.append(mine.argmax(dim=-1) == other.argmax(dim=-1))
            chosen.append(own.gather(1, self.targets[rows, None])[:, 0])
        return TokenScores(_array(torch.cat(chosen)), _array(torch.cat(klds)), torch.cat(tops).cpu().numpy())


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.float().cpu().numpy()
    return values
