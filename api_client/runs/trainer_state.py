"""``trainer_state.json`` of Hugging Face's Trainer: evaluation scores, the recorded best checkpoint, early stopping.

Written by other programs of many versions, so everything is read with suspicion: what has not the expected form is
treated as absent. Neither the deciding metric's name nor its direction is in the file (they are in a pickle beside it);
both are worked out from the values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

Scores = Mapping[str, float | None]
"""Metric name to value; ``None`` for one that is not finite."""

_NOT_A_SCORE = re.compile(r"_(runtime|per_second|preparation_time|num_tokens|samples|steps)$|^eval_epoch$")
_LOWER_IS_BETTER = re.compile(r"loss|perplexity|ppl|error|_wer$|_cer$|_mse$|_mae$|_rmse$|nll|bpb")


@dataclass(frozen=True)
class TrainerState:
    """What one ``trainer_state.json`` says.

    Attributes:
        step: Global step at which it was written.
        scores: Evaluation scores by step.
        best_name: Directory name of the best checkpoint that the trainer recorded; where it once lay is of no use.
        best_step: Step of the best score.
        best_metric: Value of the deciding metric there.
        stopped_early: Whether patience was used up when it was written.
    """

    step: int | None = None
    scores: Mapping[int, Scores] = field(default_factory=dict)
    best_name: str | None = None
    best_step: int | None = None
    best_metric: float | None = None
    stopped_early: bool = False


@dataclass(frozen=True)
class DecidingMetric:
    """The metric that decides which checkpoint is best."""

    name: str
    greater_is_better: bool


def parse_trainer_state(text: bytes) -> TrainerState | None:
    """Read one file; ``None`` if it is not a JSON object."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    best = data.get("best_model_checkpoint")
    name = _last_part(best) if isinstance(best, str) else None
    step = _integer(data.get("best_global_step"))
    return TrainerState(
        step=_integer(data.get("global_step")),
        scores=_scores_by_step(data.get("log_history")),
        best_name=name,
        best_step=step if step is not None else _step_of(name),
        best_metric=_number(data.get("best_metric")),
        stopped_early=_stopped_early(data.get("stateful_callbacks")),
    )


def deciding_metric(state: TrainerState | None, scores: Iterable[Scores]) -> DecidingMetric | None:
    """Which metric decides: the recorded one where its value can be recognised, else the loss, else the only one.

    Args:
        state: The newest state, with what the trainer recorded.
        scores: Scores of all checkpoints.
    """
    all_scores = list(scores)
    names = sorted({name for scores in all_scores for name, value in scores.items() if value is not None})
    if state is not None and state.best_metric is not None and state.best_step is not None:
        recorded = state.scores.get(state.best_step, {})
        matching = sorted(name for name, value in recorded.items() if value == state.best_metric)
        if matching:
            name = "eval_loss" if "eval_loss" in matching else matching[0]
            values = [
                value for scores in (*all_scores, *state.scores.values()) if (value := scores.get(name)) is not None
            ]
            return DecidingMetric(name, _greater_is_better(name, state.best_metric, values))
    losses = [name for name in names if "loss" in name]
    if "eval_loss" in names or losses:
        return DecidingMetric("eval_loss" if "eval_loss" in names else losses[0], False)
    return DecidingMetric(names[0], not _LOWER_IS_BETTER.search(names[0])) if len(names) == 1 else None


def _greater_is_better(name: str, best: float, values: list[float]) -> bool:
    if min(values) < best == max(values):
        return True
    if min(values) == best < max(values):
        return False
    return not _LOWER_IS_BETTER.search(name)


def _scores_by_step(history: Any) -> Mapping[int, Scores]:
    by_step: dict[int, dict[str, float | None]] = {}
    for entry in history if isinstance(history, list) else ():
        step = _integer(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            continue
        for name, value in entry.items():
            if name.startswith("eval_") and not _NOT_A_SCORE.search(name) and _is_number(value):
                by_step.setdefault(step, {})[name] = _number(value)
    return by_step


def _stopped_early(callbacks: Any) -> bool:
    saved = callbacks.get("EarlyStoppingCallback") if isinstance(callbacks, dict) else None
    for callback in saved if isinstance(saved, list) else [saved]:
        if not isinstance(callback, dict) or not isinstance(callback.get("args"), dict):
            continue
        attributes = callback.get("attributes")
        patience = _integer(callback["args"].get("early_stopping_patience"))
        waited = _integer(attributes.get("early_stopping_patience_counter")) if isinstance(attributes, dict) else None
        if patience is not None and waited is not None and waited >= patience > 0:
            return True
    return False


def _last_part(path: str) -> str | None:
    parts = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return parts.name or None


def _step_of(name: str | None) -> int | None:
    match = re.search(r"-(\d{1,12})$", name or "")
    return int(match[1]) if match else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) and math.isfinite(value) else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None
