"""Make the price list: quantize every tensor to every type, and weigh what it changes by the sensitivities.

The bytes of a type, and what they decode to, are those that the quantize stage writes: the same kernels with the same
importance weights. The predicted KLD of a tensor is the formula of :mod:`worker.models.sensitivity.sums`, over all
rows, or, of a tensor with more than :data:`SAMPLE_ELEMENTS`, over rows drawn from it. Rows are drawn at even steps
along the running sum of ``G``, so that a row is taken as often as it weighs (systematic sampling with probability
proportional to size), always the same ones; the price is then half the mean of ``sum_i A_i d_i ** 2`` over the draws
times the sum of ``G``, and its standard error that of the mean.

A head that is tied to the embedding is one tensor with two uses: its prices are the sums of both. Without gradients a
price is half the squared error of the outputs, relative to the outputs: not nats, but of the same kind for all tensors.

Memory: for each thread a sample of a tensor, once as float32 and once encoded. One reading of the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from worker.models.fit.prices import Prices, TensorPrice
from worker.models.gguf.tensors import normal_shape
from worker.models.gguf.types import GGMLType, tensor_bytes
from worker.models.kernels import (
    FLOAT_TYPES,
    WEIGHTS_REQUIRED,
    dequantize_rows,
    gpu_if_there,
    quantize_rows,
    widen_rows,
)
from worker.models.mixture.model import model_facts
from worker.models.mixture.names import OUTPUT_NAME, TOKEN_EMBEDDING_NAMES, may_be_quantized, wants_q8_0
from worker.models.mixture.tables import NARROWER_BLOCK, NEEDS_IMATRIX
from worker.models.quantize.engine import available_cpus
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.source import Source, open_source
from worker.models.sensitivity.gguf_form import invalid
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity
from worker.setting import ON_THIS_MACHINE, WorkProgress, WorkSetting
from worker.stop import StopRequested

if TYPE_CHECKING:
    from worker.models.gguf.tensors import TensorInfo

SAMPLE_ELEMENTS = 1 << 20
"""Elements of a tensor that are quantized; of a larger one a sample of its rows."""
_AHEAD = 2


@dataclass(frozen=True)
class _Use:
    """One of the uses of a tensor, with the rows that are tried for it.

    Attributes:
        means: ``A``, float64 ``(m, row length)``.
        rows: Rows that are tried, counted over all matrices, ascending; int64 ``(n,)``.
        factors: What each row's weighted error counts, float64 ``(n,)``; their products add up to the KLD.
        sampled: Draws that ``factors`` are made of; 0 where all rows are tried.
        relative: Whether the error is taken relative to the outputs.
    """

    means: NDArray[np.float64]
    rows: NDArray[np.int64]
    factors: NDArray[np.float64]
    sampled: int
    relative: bool


def price_tensors(
    source: Path,
    sensitivity: Sensitivity,
    types: Iterable[GGMLType],
    matrix: ImatrixData | None,
    *,
    sample_elements: int = SAMPLE_ELEMENTS,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> Prices:
    """Price every tensor that llama-quantize would quantize and that has a sensitivity.

    Args:
        source: Unquantized GGUF file, or the first of its shards.
        sensitivity: Of the same model.
        types: Types that tensors may take. F16 is always among the prices, and where a row is no multiple of a type's
            block, the type that llama-quantize falls back to.
        matrix: What the files will be quantized with; types that need it are not priced for tensors without an entry.
        sample_elements: See :data:`SAMPLE_ELEMENTS`.
        setting: Tensors are spread over its threads; it is told weights.

    Raises:
        PackagingError: ``sensitivity_invalid`` where the sensitivities are another model's; ``gguf_invalid``;
            ``imatrix_mismatch``.
        StopRequested: as asked.
    """
    wanted = sorted({*types, GGMLType.F16})
    with open_source(source) as opened, gpu_if_there():
        architecture = model_facts(opened.metadata).architecture
        chosen = [
            tensor
            for tensor in opened.tensors
            if may_be_quantized(architecture, tensor.name, normal_shape(tensor.shape))
        ]
        tied = all(tensor.name != OUTPUT_NAME for tensor in chosen)
        parts = {tensor.name: _sensitivities(tensor, sensitivity, tied) for tensor in chosen}
        work = [tensor for tensor in chosen if parts[tensor.name]]
        if not work:
            raise invalid(sensitivity.dataset, "has no entry for any tensor of this model")

        def price(tensor: TensorInfo) -> TensorPrice:
            weights = matrix.weights_of(tensor) if matrix is not None else None
            allowed = [GGMLType.Q8_0] if wants_q8_0(architecture, tensor.name) else wanted
            uses = [_use(tensor, part, sample_elements) for part in parts[tensor.name]]
            return _price(opened, tensor, _fitting(tensor, allowed, weights is not None), uses, weights)

        return Prices(tuple(_spread(price, work, setting)))


def _spread(
    price: Callable[[TensorInfo], TensorPrice], work: Sequence[TensorInfo], setting: WorkSetting
) -> Iterator[TensorPrice]:
    """Work spread over threads, results in order."""
    threads = setting.threads or available_cpus()
    total, done = sum(tensor.element_count for tensor in work), 0
    window: deque[tuple[TensorInfo, Future[TensorPrice]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="price") as pool:
        try:
            for tensor in [*work, *[None] * (_AHEAD * threads)]:
                if setting.should_stop():
                    raise StopRequested
                if tensor is not None:
                    window.append((tensor, pool.submit(price, tensor)))
                if window and (tensor is None or len(window) > _AHEAD * threads):
                    finished, future = window.popleft()
                    yield future.result()
                    done += finished.element_count
                    setting.report(WorkProgress(done, total, finished.name))
        finally:
            for _, future in window:
                future.cancel()


def _sensitivities(tensor: TensorInfo, sensitivity: Sensitivity, tied: bool) -> list[TensorSensitivity]:
    """Of each use of a tensor; checked to be of its shape."""
    names = [tensor.name]
    if tied and tensor.name == TOKEN_EMBEDDING_NAMES[0]:
        names.append(OUTPUT_NAME)
    entries = [sensitivity.entries[name] for name in names if name in sensitivity.entries]
    expected = (tensor.matrix_count, tensor.row_length)
    for entry in entries:
        gradients = entry.out_grad2
        shape = (tensor.matrix_count, tensor.rows_per_matrix)
        if entry.inputs.in_sum2.shape != expected or (gradients is not None and gradients.shape != shape):
            raise invalid(
                sensitivity.dataset,
                f"the entry of {tensor.name} is {entry.inputs.in_sum2.shape}, the model's tensor {tensor.shape}",
            )
    return entries


def _use(tensor: TensorInfo, part: TensorSensitivity, sample_elements: int) -> _Use:
    relative = part.out_grad2 is None
    given = np.ones(tensor.row_count) if part.out_grad2 is None else part.out_grad2.reshape(-1)
    gradients = given.astype(np.float64)
    total = float(gradients.sum())
    draws = max(1, sample_elements // tensor.row_length)
    if tensor.row_count <= draws or total <= 0:
        rows = np.flatnonzero(gradients) if total > 0 else np.arange(min(tensor.row_count, draws))
        return _Use(part.mean_inputs(), rows, gradients[rows], 0, relative)
    running = np.cumsum(gradients)
    drawn = np.searchsorted(running, (np.arange(draws) + 0.5) * (running[-1] / draws), side="right")
    rows, times = np.unique(np.minimum(drawn, tensor.row_count - 1), return_counts=True)
    factors = times.astype(np.float64) * (total / draws)
    return _Use(part.mean_inputs(), rows, factors, draws, relative)


def _fitting(tensor: TensorInfo, types: Sequence[GGMLType], has_weights: bool) -> list[GGMLType]:
    """Types that the tensor can be made in."""
    possible = dict.fromkeys(
        fitting
        for tensor_type in types
        for fitting in (
            tensor_type
            if tensor.row_length % tensor_type.block_length == 0
            else NARROWER_BLOCK.get(tensor_type, GGMLType.F16),
        )
        if tensor.row_length % fitting.block_length == 0
    )
    outside = tensor.name == OUTPUT_NAME or tensor.name in TOKEN_EMBEDDING_NAMES
    needing = WEIGHTS_REQUIRED if outside else {*WEIGHTS_REQUIRED, *NEEDS_IMATRIX}
    return [tensor_type for tensor_type in possible if has_weights or tensor_type not in needing]


def _price(
    source: Source,
    tensor: TensorInfo,
    types: Sequence[GGMLType],
    uses: Sequence[_Use],
    weights: NDArray[np.float32] | None,
) -> TensorPrice:
    """Prices of one tensor; a type whose scales leave its range is left out."""
    klds: dict[str, float] = {}
    variances: dict[str, float] = {}
    for use in uses:
        rows = _read(source, tensor, use.rows)
        power = float(_errors(tensor, use, rows) @ use.factors) if use.relative else 1.0
        for tensor_type in types:
            decoded = _decoded(tensor, use.rows, rows, tensor_type, weights)
            if not np.isfinite(decoded).all():
                klds[tensor_type.name] = np.inf
                continue
            errors = _errors(tensor, use, decoded - rows)
            klds[tensor_type.name] = klds.get(tensor_type.name, 0.0) + 0.5 * float(errors @ use.factors) / (
                power or 1.0
            )
            if use.sampled:
                own = (0.5 * use.factors.sum() / (power or 1.0)) ** 2 * _variance(errors, use) / use.sampled
                variances[tensor_type.name] = variances.get(tensor_type.name, 0.0) + own
    kept = {name: value for name, value in klds.items() if np.isfinite(value)}
    return TensorPrice(
        name=tensor.name,
        shape=normal_shape(tensor.shape),
        bytes_of={name: tensor_bytes(GGMLType[name], tensor.shape) for name in kept},
        kld_of=kept,
        error_of={name: float(np.sqrt(value)) for name, value in variances.items() if name in kept},
    )


def _variance(errors: NDArray[np.float64], use: _Use) -> float:
    """Variance of a row's weighted error over the draws."""
    shares = use.factors / use.factors.sum()
    mean = float(errors @ shares)
    return float(((errors - mean) ** 2) @ shares)


def _errors(tensor: TensorInfo, use: _Use, change: NDArray[np.float32]) -> NDArray[np.float64]:
    """``sum_i A_i d_i ** 2`` of each row."""
    errors = np.empty(len(change))
    for matrix, at in _by_matrix(tensor, use.rows).items():
        errors[at] = np.square(change[at], dtype=np.float32) @ use.means[matrix].astype(np.float32)
    return errors


def _by_matrix(tensor: TensorInfo, rows: NDArray[np.int64]) -> Mapping[int, slice]:
    """Ascending rows by the matrix that they lie in."""
    matrices = rows // tensor.rows_per_matrix
    ends = np.searchsorted(matrices, np.unique(matrices), side="right")
    starts = [0, *ends[:-1]]
    return {int(matrices[start]): slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)}


def _read(source: Source, tensor: TensorInfo, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of a tensor as float32 ``(n, row length)``."""
    raw = np.empty((len(rows), tensor.row_bytes), np.uint8)
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        if end > start:
            raw[start:end] = source.read_rows(tensor, int(rows[start]), int(end - start))
    return widen_rows(tensor.type, raw) if tensor.type in FLOAT_TYPES else dequantize_rows(tensor.type, raw)


def _decoded(
    tensor: TensorInfo,
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
    target: GGMLType,
    weights: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """What a file of this type would hold of these rows."""
    encoded = np.empty((len(rows), tensor.with_type(target).row_bytes), np.uint8)
    for matrix, at in _by_matrix(tensor, rows).items():
        quantize_rows(target, values[at], encoded[at], None if weights is None else weights[matrix])
    return widen_rows(target, encoded) if target in FLOAT_TYPES else dequantize_rows(target, encoded)
