"""Compute sensitivities: run text through the merged model, forward and backward, and gather what its weights mean.

Order of reading: :mod:`~worker.models.imatrix.compute` (the model and the tokens) -> ``two_way`` (layer by layer, both
directions) -> ``tap`` (the sums) -> ``mapping`` (sums to GGUF rows) -> ``gguf_form`` (the file). As there, no
architecture is known here. What they mean and predict stands in ``sums``.

The importance matrix is gathered on the way; where the job has one, its sums are taken instead, so that prices are
those of the bytes that will be written. A model that cannot be run backward gets sensitivities without gradients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.doors import ModelDoors, find_model_doors
from worker.models.evaluate.inverse import BlockMap, map_block
from worker.models.imatrix.compute import CalibrationChunks, OpenedModel, compute_imatrix, open_model, running_model
from worker.models.imatrix.names import map_to_gguf
from worker.models.imatrix.sums import ImatrixSums, TensorSums
from worker.models.mixture.names import OUTPUT_NAME, TOKEN_EMBEDDING_NAMES
from worker.models.sensitivity.mapping import input_columns, looked_up, output_rows
from worker.models.sensitivity.shelf import Shelf
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity
from worker.models.sensitivity.two_way import TwoWay
from worker.setting import ON_THIS_MACHINE, WorkSetting

CHUNK_TOKENS = 256
CHUNKS = 16
"""Chunks on a processor, of a model of up to :data:`_WEIGHTS` weights; more change a fit little: see docs/fit.md."""
_LEAST_CHUNKS = 4
_WEIGHTS = 300_000_000
CHUNKS_ON_GPU = 64
_SEED = 0
"""Seed of the labels that are drawn from the model's own distribution; the file notes it."""
_NOT_BACKWARD = frozenset({ErrorCode.UNSUPPORTED_ARCHITECTURE, ErrorCode.BASE_MODEL_INVALID})
"""What keeps a sound model from running backward: transformers has no such model, or finds weights missing."""
_FORM = 1
"""Of what is kept between attempts; a version that gathers otherwise begins anew."""


@dataclass(frozen=True)
class ComputedSensitivity:
    """Sensitivities and how they came about.

    Attributes:
        sensitivity: What to write.
        device: ``cpu`` or ``cuda``.
        left_out: GGUF tensors that took part but have no gradients in the file.
        forward_only: Why there are no gradients at all; empty where there are.
    """

    sensitivity: Sensitivity
    device: str
    left_out: tuple[str, ...]
    forward_only: str = ""


def compute_sensitivity(
    base: BaseModel,
    overlay: Overlay | None,
    chunks: CalibrationChunks,
    *,
    work_dir: Path,
    matrix: ImatrixSums | None = None,
    device: str = "auto",
    setting: WorkSetting = ON_THIS_MACHINE,
) -> ComputedSensitivity:
    """Run text forward and backward and gather the sensitivities of all weights.

    Args:
        base: The base model; no code in its directory is run.
        overlay: What merges the adapter, or None for the base model as it is.
        chunks: What to run; ``count`` chunks evenly spread over the text.
        work_dir: Directory of its own for what is kept between attempts; removed at the end.
        matrix: The importance matrix that will be quantized with, where there is one.
        device: ``auto``, ``cpu`` or ``cuda``.
        setting: Is told steps, and asked between them.

    Raises:
        PackagingError: ``calibration_too_short``, ``tokenizer_unsupported``, ``base_model_quantized``,
            ``base_model_invalid``, ``adapter_mismatch``, ``vocabulary_mismatch``, ``weights_not_finite``,
            ``cuda_out_of_memory``; ``unsupported_architecture`` where not even the forward pass can be run.
        StopRequested: when asked to stop; call again with the same ``work_dir`` to go on.
    """
    whole = CalibrationChunks(chunks.text, chunks.tokenizer_dir, None, chunks.tokens)
    opened = open_model(base, overlay, whole, device=device, setting=setting)
    tokens = _spread(opened.tokens, chunks.count or _enough_chunks(base, opened.skeleton.device))
    digest = hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    identity = (
        f"{_FORM} {base.directory} {base.fingerprint} {sorted(overlay.names()) if overlay else None} {digest} {_SEED}"
    )
    forward_only = ""
    left_out: list[str] = []
    entries: dict[str, TensorSensitivity]
    gathered: tuple[int, int]
    shelf = Shelf(work_dir, identity, opened.skeleton.device)
    try:
        with running_model(type(opened.skeleton.model).__name__):
            if opened.skeleton.model.config.is_encoder_decoder:
                raise NotImplementedError("an encoder-decoder says nothing of plain text")
            places = find_model_doors(opened.skeleton)
            run = TwoWay(opened.skeleton, places, torch.split(tokens, 1), shelf, _SEED)
            run.run(setting.report, setting.should_stop)
        entries, left_out = _mapped(opened, places, run, matrix, tokens.numel())
        gathered = (matrix.chunk_count, matrix.chunk_tokens) if matrix else (len(tokens), tokens.shape[1])
        _check_finite(entries)
    except PackagingError as error:
        if error.code not in _NOT_BACKWARD:
            raise
        forward_only = error.message
        sums = matrix or compute_imatrix(base, overlay, chunks, device=device, setting=setting).sums
        gathered = (sums.chunk_count, sums.chunk_tokens)
        entries = {name: TensorSensitivity(inputs, None) for name, inputs in sums.entries.items()}
    shelf.clear()
    sensitivity = Sensitivity(
        dataset=chunks.text.name,
        text_sha256=digest,
        tokens=tokens.numel(),
        chunk_tokens=tokens.shape[1],
        model=base.fingerprint,
        seed=_SEED,
        entries=dict(sorted(entries.items())),
        matrix_chunks=gathered,
    )
    return ComputedSensitivity(sensitivity, opened.skeleton.device.type, tuple(left_out), forward_only)


def _enough_chunks(base: BaseModel, device: torch.device) -> int:
    """Chunks to run where nobody says: on a processor of a large model fewer, so that the time stays."""
    if device.type == "cuda":
        return CHUNKS_ON_GPU
    weights = sum(prod(entry.shape) for entry in base.tensors.values())
    return max(_LEAST_CHUNKS, min(CHUNKS, CHUNKS * _WEIGHTS // max(1, weights)))


def _spread(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` chunks evenly spread over all of a text, since texts change on the way."""
    count = min(count, len(tokens))
    return tokens[[index * len(tokens) // count for index in range(count)]]


def _mapped(
    opened: OpenedModel, places: ModelDoors, run: TwoWay, matrix: ImatrixSums | None, tokens: int
) -> tuple[dict[str, TensorSensitivity], list[str]]:
    """What was gathered, by GGUF name, and the names of what has inputs but no gradients."""
    skeleton = opened.skeleton
    if matrix is None:
        shapes = {name: tensor.shape for name, tensor in skeleton.model.state_dict().items()}
        inputs = map_to_gguf(run.inputs.gathered, shapes, skeleton.to_checkpoint, opened.converter).entries
    else:
        inputs = dict(matrix.entries)
    entries: dict[str, TensorSensitivity] = {}
    for block in _blocks(opened, places):
        for name in block.targets:
            entries |= _entries(name, block, run, inputs, tokens)
    return entries, sorted(set(inputs) - set(entries))


def _entries(
    name: str, block: BlockMap, run: TwoWay, inputs: Mapping[str, TensorSums], tokens: int
) -> dict[str, TensorSensitivity]:
    """Sensitivities of one GGUF tensor: two where it is looked up in and multiplied with, as a tied embedding is."""
    entries: dict[str, TensorSensitivity] = {}
    lookup = looked_up(block, name, run.gradients.lookups, tokens)
    if lookup is not None:
        entries[name] = TensorSensitivity(*lookup)
    sums = output_rows(block, name, run.gradients.outputs)
    own = inputs.get(name)
    if own is None and (name == OUTPUT_NAME or name in TOKEN_EMBEDDING_NAMES):
        own = input_columns(block, name, run.inputs.gathered)
    if sums is None or own is None or len(sums) % len(own.counts):
        return entries
    gradients = (sums / tokens).reshape(len(own.counts), -1).astype(np.float32)
    entries[OUTPUT_NAME if lookup is not None else name] = TensorSensitivity(own, gradients)
    return entries


def _blocks(opened: OpenedModel, places: ModelDoors) -> list[BlockMap]:
    """Where GGUF tensors come from: of each door, and of what lies outside them."""
    skeleton = opened.skeleton
    left = {name: parameter.shape for name, parameter in skeleton.model.named_parameters(remove_duplicate=False)}
    blocks = []
    for prefix in dict.fromkeys(places.prefixes.values()):
        own = {name: shape for name, shape in left.items() if name.startswith(prefix)}
        left = {name: shape for name, shape in left.items() if name not in own}
        blocks.append(map_block(own, skeleton.to_checkpoint, opened.converter))
    tapped = {name: shape for name, shape in left.items() if len(shape) >= 2}
    return [*blocks, map_block(tapped, skeleton.to_checkpoint, opened.converter)]


def _check_finite(entries: Mapping[str, TensorSensitivity]) -> None:
    for name, entry in entries.items():
        gradients = entry.out_grad2
        if not np.isfinite(entry.inputs.in_sum2).all() or (gradients is not None and not np.isfinite(gradients).all()):
            raise PackagingError(
                ErrorCode.WEIGHTS_NOT_FINITE,
                f"running the calibration text gives NaN or infinite values or gradients at {name}",
                fields={"tensor": name},
            )
