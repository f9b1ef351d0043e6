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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, nan, sqrt

import numpy as np
from numpy.typing import NDArray

from worker.evaluate.scores import TokenScores

NOTHING_LEARNT_KLD = 1e-5
"""Mean KLD in nats between tune and base below which the adapter changes nothing that can be measured in a file."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error, both in the figure's own unit."""

    value: float
    error: float


@dataclass(frozen=True)
class Figures:
    """How far one model is from the reference.

    Attributes:
        tokens: Scored tokens.
        mean_kld: Nats.
        median_kld: Nats; half of the tokens are below it.
        kld_99: Nats; 99 % of the tokens are below it.
        kld_999: Nats; 99.9 % of the tokens are below it.
        max_kld: Nats.
        same_top: Share of tokens, 0 to 1.
        perplexity_ratio: Perplexity of the model divided by the reference's.
        rms_probability_change: 0 to 1.
    """

    tokens: int
    mean_kld: Estimate
    median_kld: float
    kld_99: float
    kld_999: float
    max_kld: float
    same_top: Estimate
    perplexity_ratio: Estimate
    rms_probability_change: Estimate


def figures(reference: TokenScores, scores: TokenScores) -> Figures:
    """Figures of a model's scores against the reference's; both over the same tokens, at least one."""
    kld = scores.kld.astype(np.float64)
    change = np.exp(scores.log_probability.astype(np.float64)) - np.exp(reference.log_probability.astype(np.float64))
    median, high, higher = (float(value) for value in np.quantile(kld, [0.5, 0.99, 0.999]))
    ratio = _mean(reference.log_probability.astype(np.float64) - scores.log_probability)
    squares = _mean(change**2)
    agree = float(scores.same_top.mean())
    rms = sqrt(squares.value)
    return Figures(
        tokens=len(kld),
        mean_kld=_mean(kld),
        median_kld=median,
        kld_99=high,
        kld_999=higher,
        max_kld=float(kld.max()),
        same_top=Estimate(agree, sqrt(agree * (1 - agree) / max(len(kld) - 1, 1))),
        perplexity_ratio=Estimate(exp(ratio.value), exp(ratio.value) * ratio.error),
        rms_probability_change=Estimate(rms, squares.error / (2 * rms) if rms > 0 else 0.0),
    )


def by_part(reference: TokenScores, scores: TokenScores, parts: Sequence[str]) -> dict[str, Figures]:
    """Figures of each part of the text."""
    labels = np.asarray(parts)
    return {
        part: figures(select(reference, labels == part), select(scores, labels == part))
        for part in dict.fromkeys(parts)
    }


def select(scores: TokenScores, mask: NDArray[np.bool_]) -> TokenScores:
    """Scores of some tokens."""
    return TokenScores(scores.log_probability[mask], scores.kld[mask], scores.same_top[mask])


def retention(file: TokenScores, base: TokenScores) -> Estimate | None:
    """Share of the training that is in the file; None where the adapter changes nothing measurable.

    Args:
        file: The file against the tuned model.
        base: The base model without the adapter against the tuned model, over the same tokens.
    """
    lost, learnt = file.kld.astype(np.float64), base.kld.astype(np.float64)
    whole = _mean(learnt)
    if whole.value < NOTHING_LEARNT_KLD or whole.value < 2 * whole.error:
        return None
    ratio = float(lost.mean()) / whole.value
    return Estimate(1 - ratio, _mean(lost - ratio * learnt).error / whole.value)


def summary(reference: TokenScores) -> Mapping[str, Estimate]:
    """What is known of the reference by itself: its perplexity."""
    surprise = _mean(-reference.log_probability.astype(np.float64))
    return {"perplexity": Estimate(exp(surprise.value), exp(surprise.value) * surprise.error)}


def _mean(values: NDArray[np.float64]) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values.mean()), nan)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / sqrt(len(values)))
