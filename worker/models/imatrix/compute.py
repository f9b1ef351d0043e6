"""Compute an importance matrix: run calibration text through the merged model and gather what reaches its weights.

For every weight that is quantized, the mean squared value of each input channel says how much a rounding error there
will hurt. ``llama-imatrix`` defines the statistic and its file; this does the same in torch, from the base model's
files and the overlay, so that neither a merged model nor an unquantized GGUF has to exist.

Order of reading: ``tokens`` (text to chunks) -> ``model`` (a model without weights) -> ``lockstep`` (layer by layer) ->
``tap`` (the sums) -> ``names`` (sums to GGUF tensors) -> ``gguf_form`` (the file).

Memory: the weights outside the layers (embedding), one layer, the hidden states of all chunks, and the activations of
one batch. Arithmetic is float32 on the CPU; on a GPU bfloat16 where the base model is bfloat16, else float32. Sums
are float64. On the CPU the same input gives the same file; on a GPU sums over experts may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.convert.upstream import load_upstream
from worker.models.convert.weights import MergedWeights
from worker.models.imatrix.calibration import Calibration
from worker.models.imatrix.converter import open_converter
from worker.models.imatrix.lockstep import Door, Lockstep, find_doors
from worker.models.imatrix.model import MODEL_ERRORS, WITHOUT_MATRIX, Skeleton, best_device
from worker.models.imatrix.names import Converter, map_to_gguf
from worker.models.imatrix.sums import ImatrixSums
from worker.models.imatrix.tap import ActivationTap
from worker.models.imatrix.tokens import tokenize_chunks
from worker.setting import ON_THIS_MACHINE, Report, WorkProgress, WorkSetting
from worker.stop import StopRequested

CHUNK_TOKENS = 512
BATCH_CHUNKS = 4
"""Chunks that run through a layer together; as many tokens as llama-imatrix takes (2048)."""


@dataclass(frozen=True)
class CalibrationChunks:
    """What is run through the model.

    Attributes:
        text: The text, and its name for the file.
        tokenizer_dir: Directory with the tokenizer files.
        count: How many chunks of the text to use; all where None.
        tokens: Tokens in a chunk; less where the model takes fewer positions.
    """

    text: Calibration
    tokenizer_dir: Path
    count: int | None = None
    tokens: int = CHUNK_TOKENS


@dataclass(frozen=True)
class ComputedImatrix:
    """An importance matrix and how it came about.

    Attributes:
        sums: What to write.
        token_count: Tokens that were run.
        device: ``cpu`` or ``cuda``.
        left_out: Weights that took part but have no entry (see :mod:`worker.models.imatrix.names`).
        unreached: GGUF tensors of experts -> how many of them no token reached.
    """

    sums: ImatrixSums
    token_count: int
    device: str
    left_out: tuple[str, ...]
    unreached: Mapping[str, int]


@dataclass(frozen=True)
class OpenedModel:
    """A model and the text to run through it, before any weight is read.

    Attributes:
        skeleton: The model without weights.
        converter: Upstream's converter, for its tensor mapping.
        tokens: Token ids, int64 ``(chunks, tokens)``.
    """

    skeleton: Skeleton
    converter: Converter
    tokens: torch.Tensor


def open_model(
    base: BaseModel, overlay: Overlay | None, chunks: CalibrationChunks, *, device: str, setting: WorkSetting
) -> OpenedModel:
    """The merged model without its weights, and the text in tokens; arguments and errors as :func:`compute_imatrix`."""
    target = best_device() if device == "auto" else torch.device(device)
    weights = MergedWeights(base, overlay)
    tensors = weights.entries()
    converter = open_converter(load_upstream(setting.llama_cpp_dir), weights, setting.roots)
    skeleton = Skeleton(base.directory, tensors, target)
    length = min(chunks.tokens, _positions(skeleton.model.config) or chunks.tokens)
    tokens = tokenize_chunks(
        chunks.text.text, chunks.tokenizer_dir, length, chunks.count, special_tokens=chunks.text.special_tokens
    )
    if int(tokens.max()) >= skeleton.embedding_rows:
        raise PackagingError(
            ErrorCode.VOCABULARY_MISMATCH,
            f"the tokenizer gives token {int(tokens.max())}, the embedding has {skeleton.embedding_rows} rows",
        )
    return OpenedModel(skeleton, converter, tokens)


def compute_imatrix(
    base: BaseModel,
    overlay: Overlay | None,
    chunks: CalibrationChunks,
    *,
    device: str = "auto",
    layered: bool = True,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> ComputedImatrix:
    """Run a text through the model and gather the mean squared inputs of its weights.

    Args:
        base: The base model; no code in its directory is run.
        overlay: What merges the adapter, or None for the base model as it is.
        chunks: What to run.
        device: ``auto``, ``cpu`` or ``cuda``.
        layered: Load one layer at a time; False loads all weights at once.
        setting: Is told chunks, and asked after each batch and layer.

    Raises:
        PackagingError: ``calibration_too_short``, ``tokenizer_unsupported``, ``unsupported_architecture``,
            ``base_model_quantized``, ``base_model_invalid``, ``adapter_mismatch``, ``vocabulary_mismatch``,
            ``weights_not_finite``, ``cuda_out_of_memory``.
        StopRequested: when asked to stop; nothing was written.
    """
    opened = open_model(base, overlay, chunks, device=device, setting=setting)
    skeleton, tokens = opened.skeleton, opened.tokens
    with running_model(type(skeleton.model).__name__):
        tap = _run(skeleton, tokens.to(skeleton.device), layered, setting)
    shapes = {name: tensor.shape for name, tensor in skeleton.model.state_dict().items()}
    mapped = map_to_gguf(tap.gathered, shapes, skeleton.to_checkpoint, opened.converter)
    entries = dict(sorted(mapped.entries.items()))
    return ComputedImatrix(
        sums=ImatrixSums((chunks.text.name,), len(tokens), tokens.shape[1], entries),
        token_count=tokens.numel(),
        device=skeleton.device.type,
        left_out=tuple(mapped.left_out),
        unreached={name: int((sums.counts == 0).sum()) for name, sums in entries.items() if (sums.counts == 0).any()},
    )


@contextmanager
def running_model(model_class: str) -> Iterator[None]:
    """The edge to transformers' models: what running one raises becomes ``PackagingError``, by type."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PackagingError(ErrorCode.CUDA_OUT_OF_MEMORY, f"computing the importance matrix: {error}") from error
    except MODEL_ERRORS as error:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{model_class} of transformers does not run on plain text: {type(error).__name__}: {error}",
            remedy=WITHOUT_MATRIX,
        ) from error


def _positions(config: Any) -> int | None:
    """Positions that the model can tell apart, where it says so; one with learned positions fails beyond them."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return min((value for value in limits if isinstance(value, int) and value > 0), default=None)


def _run(skeleton: Skeleton, tokens: torch.Tensor, layered: bool, setting: WorkSetting) -> ActivationTap:
    """Run all chunks; returns the tap with what it gathered."""
    tap = ActivationTap()

    @contextmanager
    def scope() -> Iterator[None]:
        with torch.no_grad(), tap:
            yield

    def enter(door: Door, _passes: Sequence[int]) -> None:
        tap.register(skeleton.load(f"{door.name}."))

    def leave(door: Door, _passes: Sequence[int]) -> None:
        _check_finite(tap, f"{door.name}.")
        tap.forget(f"{door.name}.")
        skeleton.free(f"{door.name}.")

    doors = layer_doors(skeleton) if layered else []
    tap.register(skeleton.load(skeleton.prefix, without=tuple(f"{door.name}." for door in doors)))
    batches = torch.split(tokens, BATCH_CHUNKS)
    passes = [partial(_forward, skeleton, batch) for batch in batches]
    progress = _Progress(doors, len(batches), len(tokens), setting.report)
    if doors:
        with scope():
            Lockstep(doors, enter, leave, scope).run(passes, progress.layer_done, setting.should_stop)
    else:
        for forward in passes:
            if setting.should_stop():
                raise StopRequested
            with scope():
                forward()
            progress.batch_done()
    _check_finite(tap, "")
    return tap


def _forward(skeleton: Skeleton, ids: torch.Tensor) -> None:
    """One batch ``(chunks, tokens)`` through the model; an encoder-decoder reads the same text on both sides."""
    named = {"input_ids": ids}
    if skeleton.model.config.is_encoder_decoder:
        named["decoder_input_ids"] = ids
    skeleton.body(**named, use_cache=False)


def layer_doors(skeleton: Skeleton) -> list[Door]:
    """The layers to load one at a time, by their names in the whole model; none where layers share weights."""
    doors = [Door(skeleton.prefix + door.name, door.module) for door in find_doors(skeleton.body)]
    inside = tuple(f"{door.name}." for door in doors)
    tied = skeleton.model.all_tied_weights_keys
    shared = any(name.startswith(inside) for name in chain(tied.keys(), tied.values()))
    return [] if shared else doors


class _Progress:
    """Turns steps into chunks done; a step is one batch through one layer, or through a model that is run whole."""

    def __init__(self, doors: Sequence[Door], batch_count: int, chunk_count: int, report: Report) -> None:
        self._doors = doors
        self._batch_count = batch_count
        self._chunk_count = chunk_count
        self._report = report
        self._visited: set[str] = set()  # lists of layers; text never enters those of a vision tower
        self._done = 0

    def layer_done(self, door: Door) -> None:
        """One batch has passed ``door``."""
        self._visited.add(_list_name(door))
        self._tell(sum(_list_name(other) in self._visited for other in self._doors))

    def batch_done(self) -> None:
        """One batch has passed the whole model."""
        self._tell(1)

    def _tell(self, steps_per_batch: int) -> None:
        self._done += 1
        done = self._chunk_count * self._done / (steps_per_batch * self._batch_count)  # all chunks move together
        self._report(WorkProgress(done, self._chunk_count))


def _list_name(door: Door) -> str:
    return door.name.rpartition(".")[0]


def _check_finite(tap: ActivationTap, prefix: str) -> None:
    for name, entry in tap.gathered.items():
        if name.startswith(prefix) and not bool(torch.isfinite(entry.sums).all()):
            raise PackagingError(
                ErrorCode.WEIGHTS_NOT_FINITE,
                f"running the calibration text gives NaN or infinite values at the input of {name}",
                fields={"tensor": name},
            )
