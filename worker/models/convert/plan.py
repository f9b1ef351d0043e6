"""The plan of one GGUF file: header bytes, and which tensor goes where. Upstream decides all of it.

Upstream's model class is subclassed on the spot, shown the staged directory and the merged weights, and asked to
prepare tensors and metadata as it would for its own converter; then its writer is asked for the header. No weight has
been read by then (a few architectures look at small tensors). What upstream raises on the way is mapped here, by
type, to error codes; the cause that comes first wins over the ones that follow from it. Next: ``writer``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from worker.foreign import converted_dtypes, lazy_meta
from worker.models.convert.evaluate import Evaluator, Rounding
from worker.models.convert.header import encode_prepared
from worker.models.convert.layer_kinds import check_assumptions, missing_pattern
from worker.models.convert.nextn import check_announced, holds_mtp, missing_layers
from worker.models.convert.projector import names_for
from worker.models.convert.repairs import completed_configs
from worker.models.convert.upstream import Upstream, unsupported_architecture
from worker.models.convert.upstream_errors import upstream_errors
from worker.models.convert.weight_names import as_on_the_hub, check_expressible, classifier_labels, meant_name
from worker.models.convert.weights import MergedWeights, WeightEntry
from worker.models.gguf.tensors import align_up
from worker.models.hardening import locked_down, replaced

FILE_TYPES = {"auto": "GUESSED", "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""``gguf_dtype`` -> name in upstream's ``LlamaFileType``."""

UNUSED_OUTPUT = "unused.gguf"
"""Name of the output that upstream is told of and never makes."""

_NORMAL_TOKEN = 1  # gguf.TokenType.NORMAL


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file to write.

    Attributes:
        name: GGUF name.
        type: ggml type name, e.g. ``BF16``.
        shape: ggml order: ``shape[0]`` is the row length.
        offset: Where its data begins, in bytes from the start of the file.
        size_bytes: Bytes of data, without padding.
        value: Upstream's lazy tensor, for ``Evaluator.bytes_of``.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    value: Any


@dataclass(frozen=True)
class ConversionPlan:
    """A whole file.

    Attributes:
        header: Every byte before the first tensor's data, padding included.
        tensors: In file order.
        size_bytes: Size of the finished file.
        architecture: GGUF architecture, e.g. ``llama``.
        parameters: Number of weights.
        metadata: Key -> Python value, as upstream set it.
        left_out: Weights that no tensor is made of.
        evaluator: Computes the tensors' bytes.
        notes: Sentences worth telling the user.
        beside: Weight files besides the base model's own that tensors may be made of.
        prediction_layers: How many layers for predicting further ahead (MTP, NextN) are in the file.
    """

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    size_bytes: int
    architecture: str
    parameters: int
    metadata: Mapping[str, Any]
    left_out: tuple[str, ...]
    evaluator: Evaluator
    notes: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()
    prediction_layers: int = 0


@dataclass(frozen=True)
class StagedModel:
    """A model as upstream is shown it.

    Attributes:
        upstream: The conversion package.
        directory: Made by ``staging``.
        weights: Base model and overlay.
    """

    upstream: Upstream
    directory: Path
    weights: MergedWeights


def plan_model(
    staged: StagedModel,
    *,
    gguf_dtype: str,
    model_name: str | None,
    metadata_override: Path | None,
    finish: Callable[[Any], None] | None = None,
    part: ModelPart = ModelPart.MODEL,
    header: bytes | None = None,
) -> ConversionPlan:
    """Have upstream plan the conversion of a model, or of its projector.

    Args:
        staged: The model.
        gguf_dtype: A key of :data:`FILE_TYPES`.
        model_name: ``general.name``, or None for upstream's choice.
        metadata_override: JSON file of ``general.*`` keys, as upstream's ``--metadata``.
        finish: Called with upstream's writer when it is complete, to add keys.
        part: The text model, or the projector.
        header: The header of an earlier plan of the same: metadata is not made again then, and the plan has none.

    Raises:
        PackagingError: ``unsupported_architecture``, ``tokenizer_unsupported``, ``tokenizer_not_found``,
            ``vocabulary_mismatch``, ``base_model_invalid``, ``base_model_quantized``.
    """
    upstream, weights = staged.upstream, staged.weights
    _check_dtypes(upstream, weights)
    with locked_down(), torch.inference_mode(), shown_weights(upstream, weights):
        with upstream_errors(ErrorCode.BASE_MODEL_INVALID, "reading config.json"):
            architecture, own_class = read_class(upstream, staged.directory, part)
        shown = names_for(own_class, weights.names()) if part is ModelPart.PROJECTOR else None
        model_class = streamed_class(upstream, own_class, architecture, weights.names(), shown)
        has_place = upstream.has_place_for_prediction_layers(own_class)
        if not has_place or missing_layers(weights.base.text_config, weights.names()):
            # where the weights lack what the model's own config announces, the file says nothing of them
            model_class.no_mtp = model_class.no_mtp or getattr(model_class, "supports_mtp_export", False)
        with (
            replaced(upstream.gguf.quants, "quantize", recognisable_rounding(upstream)),
            upstream_errors(ErrorCode.BASE_MODEL_INVALID, f"preparing {architecture}"),
        ):
            model = model_class(
                staged.directory,
                upstream.gguf.LlamaFileType[FILE_TYPES[gguf_dtype]],
                staged.directory / UNUSED_OUTPUT,
                metadata_override=metadata_override,
                model_name=model_name,
                sentence_transformers_dense_modules=part is ModelPart.MODEL,
            )
            if part is ModelPart.MODEL:
                _take_vocabulary_from_embedding(model)
            model.prepare_tensors()
            if header is None:
                model.prepare_metadata(vocab_only=False)
                if part is ModelPart.MODEL:
                    _say_layer_kinds(model)
        if finish is not None and header is None:
            finish(model.gguf_writer)
        with upstream_errors(ErrorCode.BASE_MODEL_INVALID, f"describing {architecture}"):
            plan = read_plan(upstream, model.gguf_writer, header)
    if not plan.tensors:
        raise unsupported_architecture(architecture, upstream.version)
    _check_scores(plan)
    _check_vocabulary(plan)
    _check_gathered(plan)
    predicting = check_announced(plan.architecture, plan.metadata, (tensor.name for tensor in plan.tensors))
    uses = [name for tensor in plan.tensors for name in plan.evaluator.sources(tensor.value)]
    weights.share(uses)
    return replace(plan, left_out=tuple(sorted(weights.names() - set(uses))), prediction_layers=predicting)


def read_class(upstream: Upstream, staged: Path, part: ModelPart = ModelPart.MODEL) -> tuple[str, type[Any]]:
    """The architecture of the staged config, and the class that upstream converts it with.

    A class that only hands all to an object of another one (``impl``, Mistral 3) is passed over for the latter.

    Raises:
        PackagingError: ``unsupported_architecture``.
    """
    types = upstream.conversion.ModelType
    hparams = upstream.conversion.ModelBase.load_hparams(staged, False)
    kind = types.MMPROJ if part is ModelPart.PROJECTOR else types.TEXT
    architecture: str = upstream.conversion.get_model_architecture(hparams, kind)
    model_class = upstream.model_class(architecture, part)
    if "impl" in getattr(model_class, "__annotations__", {}):
        model_class = type(model_class(staged, upstream.gguf.LlamaFileType.ALL_F32, staged / UNUSED_OUTPUT).impl)
    return architecture, model_class


def _say_layer_kinds(model: Any) -> None:
    """Have the file say the order of its kinds of layers where llama.cpp would assume another."""
    writer = model.gguf_writer
    metadata = {key: entry.value for key, entry in writer.kv_data[0].items()}
    check_assumptions(writer.arch, model.hparams)
    pattern = missing_pattern(writer.arch, model.hparams, metadata)
    if pattern is not None:
        writer.add_sliding_window_pattern(pattern)


@contextmanager
def shown_weights(upstream: Upstream, weights: MergedWeights) -> Iterator[None]:
    """Have upstream read our entries where it opens the staged, empty shards, and shapes without reading a tensor.

    The staged config is read completed (``repairs``).

    A lazy tensor computes itself when asked for anything but a tensor; upstream asks for ``dim()`` to guess the type.
    """
    lazy = upstream.conversion.LazyTorchTensor
    with ExitStack() as stack:
        stack.enter_context(completed_configs(upstream))
        stack.enter_context(replaced(upstream.gguf.utility, "SafetensorsLocal", _reader_of(weights)))
        for name in ("dim", "numel", "size"):
            stack.enter_context(replaced(lazy, name, _asked_of_meta(name)))
        yield


def _asked_of_meta(name: str) -> Callable[..., Any]:
    return lambda tensor, *args: getattr(lazy_meta(tensor), name)(*args)


def read_plan(upstream: Upstream, writer: Any, header: bytes | None = None) -> ConversionPlan:
    """Take header, where it is not known, and tensors out of upstream's prepared ``GGUFWriter``."""
    header = encode_prepared(writer) if header is None else header
    alignment = writer.data_alignment
    offset = len(header)
    tensors = []
    for name, info in writer.tensors[0].items():
        shape = tuple(int(extent) for extent in reversed(info.shape))
        tensors.append(PlannedTensor(name, info.dtype.name, shape, offset, int(info.nbytes), info.tensor))
        offset += align_up(int(info.nbytes), alignment)
    return ConversionPlan(
        header=header,
        tensors=tuple(tensors),
        size_bytes=offset,
        architecture=writer.arch,
        parameters=abs(writer.get_total_parameter_count()[0]),
        metadata={key: entry.value for key, entry in writer.kv_data[0].items()},
        left_out=(),
        evaluator=Evaluator(upstream.gguf.LazyBase, upstream.conversion.LazyTorchTensor),
    )


def streamed_class(
    upstream: Upstream,
    model_class: type[Any],
    architecture: str,
    names: Collection[str],
    shown: Callable[[str], str | None] | None = None,
) -> type[Any]:
    """Upstream's model class with the places where it meets a bad input made to say what is bad.

    A class that counts MTP layers by their tensors is told to leave them out where ``names``, those of all tensors,
    has none: transformers does not save such layers, and upstream would give up. Tensors go by the names
    that ``shown`` gives, by default those that upstream means of a text model; one without a name is left out.

    Raises:
        PackagingError: ``unsupported_architecture``.
    """
    check_expressible(architecture, names)
    renamed = shown or partial(meant_name, architecture)

    class Streamed(model_class):  # type: ignore[misc]
        model_arch = model_class.model_arch
        no_mtp = getattr(model_class, "no_mtp", False) or (
            hasattr(model_class, "opt_num_mtp_layers") and not holds_mtp(names)
        )
        if hasattr(model_class, "_n_nextn") and not holds_mtp(names):
            _n_nextn = 0  # MiMo's, which upstream takes for three whatever is there
        if hasattr(model_class, "dense_features_dims"):
            # EmbeddingGemma's, which all conversions of a process would add to
            module_paths: list[str]
            dense_features_dims: dict[str, tuple[int, int]]
            module_paths, dense_features_dims = [], {}
        tokenizer_error: PackagingError | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if getattr(self, "cls_out_labels", self) is None:
                self.cls_out_labels = classifier_labels(architecture, self.hparams)

        @classmethod
        def filter_tensors(cls, item: tuple[str, Any]) -> tuple[str, Any] | None:
            name = renamed(item[0])
            kept: tuple[str, Any] | None = None if name is None else super().filter_tensors((name, item[1]))
            return kept

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Any:
            return super().modify_tensors(as_on_the_hub(architecture, self.hparams, name, data_torch), name, bid)

        def map_tensor_name(self, name: str, *args: Any, **kwargs: Any) -> str:
            try:
                mapped: str = super().map_tensor_name(name, *args, **kwargs)
            except ValueError as error:
                raise PackagingError(
                    ErrorCode.UNSUPPORTED_ARCHITECTURE,
                    f"{upstream.version} knows {architecture}, but not its tensor {name}",
                    fields={"architecture": architecture, "tensor": name, "converter": upstream.version},
                ) from error
            return mapped

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            recording = _RecordingTokenizer(tokenizer)
            try:
                known: str = super().get_vocab_base_pre(recording)
            except NotImplementedError as error:
                unknown = PackagingError(
                    ErrorCode.TOKENIZER_UNSUPPORTED,
                    f"{upstream.version} does not know this BPE pre-tokenizer (hash {recording.digest})",
                    fields={"hash": recording.digest, "converter": upstream.version},
                )
                self.tokenizer_error = unknown
                raise unknown from error
            return known

        def set_vocab(self) -> None:
            self.tokenizer_error = None
            try:
                with upstream_errors(
                    ErrorCode.TOKENIZER_UNSUPPORTED, "reading the tokenizer", tokenizer_not_found=True
                ):
                    super().set_vocab()
            except PackagingError as error:
                # Some classes catch everything and try another kind of tokenizer; the first failure is the cause.
                raise self.tokenizer_error or error from error

    Streamed.__name__ = Streamed.__qualname__ = model_class.__name__
    return Streamed


def recognisable_rounding(upstream: Upstream) -> Callable[[Any, Any], Any]:
    """A stand-in for upstream's ``quantize`` that makes the rounding to plain floats a :class:`Rounding` node."""
    types = upstream.gguf.GGMLQuantizationType
    original = upstream.gguf.quants.quantize
    dtypes = {types.F32: torch.float32, types.F16: torch.float16, types.BF16: torch.bfloat16}
    lazy = upstream.gguf.LazyNumpyTensor

    def quantize(values: Any, qtype: Any) -> Any:
        if type(values) is not lazy or qtype not in dtypes:
            return original(values, qtype)
        meta = lazy_meta(original(values, qtype))  # lazy: shape and dtype only
        rounding = Rounding(dtypes[qtype], lambda array: original(array, qtype))
        return lazy(meta=meta, args=(values,), func=rounding)

    return quantize


def _reader_of(weights: MergedWeights) -> type[Any]:
    shards = weights.shards()

    class ShardReader:
        """Stands in for upstream's ``SafetensorsLocal``: the staged shard is an empty file, its entries are ours."""

        def __init__(self, path: Path) -> None:
            self._entries = shards[path.name]

        def __enter__(self) -> dict[str, WeightEntry]:
            return self._entries

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            return None

    return ShardReader


class _RecordingTokenizer:
    """Passes everything on, and notes the digest by which upstream recognises a pre-tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.digest = "unknown"

    def encode(self, text: str, *args: Any, **kwargs: Any) -> Any:
        tokens = self._tokenizer.encode(text, *args, **kwargs)
        self.digest = hashlib.sha256(str(tokens).encode()).hexdigest()
        return tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _take_vocabulary_from_embedding(model: Any) -> None:
    """The embedding's rows are the vocabulary's size, whatever ``config.json`` says: llama.cpp loads nothing else."""
    for name, value in model.model_tensors.items():
        if model.tensor_map.get_name(key=name, try_suffixes=(".weight", ".bias")) == "token_embd.weight":
            if "vocab_size" in model.hparams:
                model.hparams["vocab_size"] = int(value().shape[0])
            return


def _check_dtypes(upstream: Upstream, weights: MergedWeights) -> None:
    """Refuse a weight of a type that upstream does not read; plain F64, F8 and I8 are read as the numbers they are."""
    read = converted_dtypes(upstream.conversion.LazyTorchTensor)
    unread = next((entry for entry in weights.entries().values() if entry.dtype not in read), None)
    if unread is not None:
        raise PackagingError(
            ErrorCode.BASE_MODEL_QUANTIZED,
            f"{unread.name} is stored as {unread.dtype}, which {upstream.version} does not read",
            remedy="Save the model in bfloat16, float16 or float32.",
            fields={"tensor": unread.name, "dtype": unread.dtype},
        )


def _check_vocabulary(plan: ConversionPlan) -> None:
    tokens = plan.metadata.get("tokenizer.ggml.tokens")
    rows = next((tensor.shape[1] for tensor in plan.tensors if tensor.name == "token_embd.weight"), None)
    if tokens is not None and rows is not None and len(tokens) != rows:
        raise PackagingError(
            ErrorCode.VOCABULARY_MISMATCH,
            f"the tokenizer has {len(tokens)} tokens, the embedding {rows} rows",
            fields={"tokens": len(tokens), "rows": rows},
        )


def _check_scores(plan: ConversionPlan) -> None:
    """Refuse a sentencepiece vocabulary without scores, by which llama.cpp merges: it would cut words anywhere.

    Upstream writes one where it finds ``tokenizer.json`` alone, of which the scores cannot be told (see
    ``sentencepiece_model``).
    """
    if plan.metadata.get("tokenizer.ggml.model") != "llama":
        return
    kinds, scores = plan.metadata["tokenizer.ggml.token_type"], plan.metadata["tokenizer.ggml.scores"]
    ordinary = [score for kind, score in zip(kinds, scores, strict=True) if kind == _NORMAL_TOKEN]
    if len(ordinary) > 1 and len(set(ordinary)) == 1:
        raise PackagingError(
            ErrorCode.TOKENIZER_NOT_FOUND,
            "tokenizer.model is needed and missing: the scores of its pieces cannot be told from tokenizer.json",
            remedy="Copy tokenizer.model of the model that this one was trained from into its directory.",
            fields={"file": "tokenizer.model"},
        )


def _check_gathered(plan: ConversionPlan) -> None:
    """Refuse the empty tensors that a sharding trainer leaves; llama.cpp would not load the file."""
    for tensor in plan.tensors:
        if not tensor.size_bytes:
            names = sorted(plan.evaluator.sources(tensor.value))
            raise PackagingError(
                ErrorCode.BASE_MODEL_INVALID,
                f"{', '.join(names) or tensor.name} is empty: the process that saved it had no values",
                remedy="Save the model with its parameters gathered (DeepSpeed ZeRO-3: "
                "stage3_gather_16bit_weights_on_model_save).",
                fields={"tensors": names[:20]},
            )
