"""From parameters to rows and columns of GGUF tensors: the gradients take the way that the weights take.

:mod:`worker.models.evaluate.inverse` finds out where each GGUF tensor's values come from; here the first column and the
first row of that map say which output, and which input, stands where in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from worker.models.evaluate.inverse import BlockMap, Span
from worker.models.imatrix.sums import TensorSums
from worker.models.imatrix.tap import Gathered
from worker.models.sensitivity.tap import LookupSums, OutputSums


def output_rows(block: BlockMap, name: str, outputs: Mapping[str, OutputSums]) -> NDArray[np.float64] | None:
    """Sums of a GGUF tensor's rows, all matrices one after the other; None where some row has none.

    Args:
        block: The map of the tensor's block.
        name: GGUF name; one of ``block.targets``.
        outputs: What was gathered, by parameter.
    """
    target = block.targets[name]
    rows, columns = (numbers[:, 0].expand(target.shape[0]) for numbers in (target.rows, target.columns))
    weight_of = torch.full((target.shape[0],), torch.nan, dtype=torch.float64)
    for span in block.spans:
        entry = outputs.get(span.name)
        inside = (rows >= span.first) & (rows < span.first + span.rows)
        if entry is None or not bool(inside.any()):
            continue
        local, sums = rows[inside] - span.first, entry.sums.cpu()
        if entry.axis == -1:
            weight_of[inside] = sums.flatten()[local]
        else:
            weight_of[inside] = sums[local // span.shape[-2], columns[inside]]
    return None if bool(weight_of.isnan().any()) else weight_of.numpy()


def input_columns(block: BlockMap, name: str, gathered: Mapping[str, Gathered]) -> TensorSums | None:
    """Squared inputs of a GGUF tensor of one matrix; for the head, which importance matrices leave out."""
    span = _only_span(block, name)
    entry = gathered.get(span.name) if span is not None else None
    if span is None or entry is None or len(entry.sums) != 1:
        return None
    target = block.targets[name]
    numbers = target.columns[0] if entry.axis == -1 else target.rows[0] - span.first
    sums = entry.sums.cpu()[0][numbers.expand(target.shape[1])]
    return TensorSums(sums[None].float().numpy(), entry.counts.cpu().float().numpy())


def looked_up(
    block: BlockMap, name: str, lookups: Mapping[str, LookupSums], tokens: int
) -> tuple[TensorSums, NDArray[np.float32]] | None:
    """Sensitivity of a GGUF tensor that rows are looked up in: each column's share, and a row's for a token of text."""
    span = _only_span(block, name)
    entry = lookups.get(span.name) if span is not None else None
    if span is None or entry is None:
        return None
    target = block.targets[name]
    rows = (target.rows[:, 0] - span.first).expand(target.shape[0])
    columns = target.columns[0].expand(target.shape[1])
    total = float(entry.columns.sum())
    shares = entry.columns.cpu()[columns] / (total or 1.0)
    gradients = entry.rows.cpu()[rows] / tokens
    return TensorSums(shares[None].float().numpy(), np.ones(1, np.float32)), gradients[None].float().numpy()


def _only_span(block: BlockMap, name: str) -> Span | None:
    """The parameter that a GGUF tensor comes from; None where it comes from several."""
    names = block.parameters_of(name)
    return next((span for span in block.spans if [span.name] == names), None)
