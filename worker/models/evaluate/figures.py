"""From scores to figures: means with their standard errors, tails, agreement, and how much of the training is kept.

Definitions, over ``n`` scored tokens, as ``llama-perplexity --kl-divergence`` prints them: mean KLD in nats and its
standard error ``s / sqrt(n)``; the ratio of perplexities ``exp(mean(log p_reference - log p_file))`` with the error of
that mean carried through; the root of the mean squared change of the token's probability; the share of tokens whose
most probable continuation is the same.

Retention is ``1 - KL(tune || file) / KL(tune || base)``: 1 where the file predicts as the tune does, 0 where it is as
far from it as the base without the adapter. Its error is that of a ratio of two means over the same tokens (delta
method).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from api_client.contract.quality import Divergence, Figure
from worker.models.evaluate.scores import TokenScores

NOTHING_LEARNT_KLD = 1e-5
"""Mean KLD in nats between tune and base below which the adapter changes nothing that can be measured in a file."""


def figures(reference: TokenScores, scores: TokenScores) -> Divergence:
    """Figures of a model's scores against the reference's; both over the same tokens, at least one."""
    kld = scores.kld.astype(np.float64)
    own, other = (scored.log_probability.astype(np.float64) for scored in (reference, scores))
    median, high, higher = (float(value) for value in np.quantile(kld, [0.5, 0.99, 0.999]))
    ratio, squares = _mean(own - other), _mean((np.exp(other) - np.exp(own)) ** 2)
    agree = float(scores.same_top.mean())
    rms = sqrt(squares.value)
    return Divergence(
        tokens=len(kld),
        mean_kld=_mean(kld),
        median_kld=median,
        kld_99=high,
        kld_999=higher,
        max_kld=float(kld.max()),
        same_top=Figure(value=agree, error=sqrt(agree * (1 - agree) / max(len(kld) - 1, 1))),
        perplexity_ratio=_scaled(Figure(value=exp(ratio.value), error=ratio.error), exp(ratio.value)),
        rms_probability_change=_scaled(Figure(value=rms, error=squares.error), 1 / (2 * rms) if rms > 0 else 0.0),
    )


def by_part(reference: TokenScores, scores: TokenScores, parts: Sequence[str]) -> dict[str, Divergence]:
    """Figures of each part of the text."""
    labels = np.asarray(parts)
    return {
        part: figures(select(reference, labels == part), select(scores, labels == part))
        for part in dict.fromkeys(parts)
    }


def select(scores: TokenScores, mask: NDArray[np.bool_]) -> TokenScores:
    """Scores of some tokens."""
    return TokenScores(scores.log_probability[mask], scores.kld[mask], scores.same_top[mask])


def retention(file: TokenScores, base: TokenScores) -> Figure | None:
    """Share of the training that is in the file; None where the adapter changes nothing measurable.

    Args:
        file: The file against the tuned model.
        base: The base model without the adapter against the tuned model, over the same tokens.
    """
    lost, learnt = file.kld.astype(np.float64), base.kld.astype(np.float64)
    whole = _mean(learnt)
    if not measurable(whole):
        return None
    ratio = float(lost.mean()) / whole.value
    return _scaled(Figure(value=1 - ratio, error=_mean(lost - ratio * learnt).error), 1 / whole.value)


def measurable(training: Figure) -> bool:
    """Whether the divergence between tune and base is more than noise."""
    return training.value >= NOTHING_LEARNT_KLD and training.value >= 2 * (training.error or 0.0)


def perplexity(reference: TokenScores) -> Figure:
    """Perplexity of the reference by itself."""
    surprise = _mean(-reference.log_probability.astype(np.float64))
    return _scaled(Figure(value=exp(surprise.value), error=surprise.error), exp(surprise.value))


def _scaled(figure: Figure, factor: float) -> Figure:
    """The figure with its error in another unit."""
    return figure if figure.error is None else Figure(value=figure.value, error=figure.error * factor)


def _mean(values: NDArray[np.float64]) -> Figure:
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else None
    return Figure(value=float(values.mean()), error=error)
