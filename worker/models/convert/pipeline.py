"""``convert``: a base model, or a base model and an overlay, to one unquantized GGUF file in one pass.

Memory: a few times the largest tensor (GGUF tensor, so all experts of a layer together), and at most 256 MiB of
finished tensors waiting to be hashed. Disk: the file, and a staging directory of a few MB. The file's tensors and
metadata are those of upstream's converter on the merged model; only what the caller puts into ``metadata`` differs.
Safe to retry: after a stop or a crash the next call goes on where the file's beginning is good.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import room_errors
from worker.models.adapters.names import config_keys
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel, open_base_model
from worker.models.convert.card import Card, read_card
from worker.models.convert.consumed import check_consumed
from worker.models.convert.layer_kinds import lost_window
from worker.models.convert.metadata import OWN_CARD, Naming
from worker.models.convert.projector import check_complete
from worker.models.convert.sentence_modules import SentenceModules, check_dense, files_beside, read_sentence_modules
from worker.models.convert.staging import stage
from worker.models.convert.tokenizer import TokenizerChoice, find_tokenizer
from worker.models.convert.upstream import (
    Upstream,
    check_architecture,
    load_upstream,
    shown_changes,
    supported_architectures,
    upstream_version,
)
from worker.models.convert.vocabulary import check_vocabulary, embedding_rows
from worker.models.convert.weights import MergedWeights
from worker.models.gguf.reader import GGUFFile
from worker.models.gguf.tensors import normal_shape
from worker.models.heap import keep_freed_memory
from worker.setting import ON_THIS_MACHINE, WorkSetting

if TYPE_CHECKING:
    from worker.models.convert.plan import ConversionPlan
    from worker.models.convert.writer import WrittenFile

_ANY_SIZE = 1 << 62  # of a file whose tensors are compared before its size means anything
_EOS, _EOT = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"


@dataclass(frozen=True)
class ConvertResult:
    """A finished GGUF file.

    Attributes:
        path: The file.
        size_bytes: Its size.
        sha256: Hex digest of the whole file.
        architecture: GGUF architecture, e.g. ``llama``.
        parameters: Number of weights.
        tensor_types: ggml type name -> number of tensors.
        file_type: ``general.file_type``.
        resumed_bytes: How much of it an earlier attempt had written.
        left_out: Weights that no tensor of the file was made of: of a text model the vision tower, of a projector the
            text model; rotary tables, unused heads.
        converter: Name and version of the conversion package.
        notes: Sentences worth telling the user.
    """

    path: Path
    size_bytes: int
    sha256: str
    architecture: str
    parameters: int
    tensor_types: Mapping[str, int]
    file_type: int | None
    resumed_bytes: int
    left_out: tuple[str, ...]
    converter: str
    notes: tuple[str, ...] = ()


def convert(
    model: Path | BaseModel,
    out_path: Path,
    *,
    overlay: Overlay | None = None,
    tokenizer: TokenizerChoice | None = None,
    gguf_dtype: str = "auto",
    naming: Naming = OWN_CARD,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> ConvertResult:
    """Convert.

    Args:
        model: The base model's directory; or the base model, opened.
        out_path: File to make; replaced if it exists. Its directory must exist.
        overlay: Updates to merge; its own precision decides where sums are rounded.
        tokenizer: From ``find_tokenizer``; the base model's own where not given.
        gguf_dtype: ``auto`` (upstream's: bfloat16 or float16 as the base, float16 for a float32 base), ``f32``,
            ``f16``, ``bf16``, and for a projector ``q8_0``.
        naming: Which file of the model it is, and what it says of it.
        setting: Tensors are evaluated on its threads, by default one per core and at most 8; it is told bytes and the
            tensor's name after each tensor, and asked between tensors.

    Raises:
        StopRequested: As asked; the partial file and its journal stay.
        PackagingError: ``base_model_*``, ``weights_*``, ``unsupported_architecture``, ``tokenizer_not_found``,
            ``tokenizer_unsupported``, ``vocabulary_mismatch``, ``adapter_mismatch``, ``adapter_unsupported`` where a
            trained tensor has no place in the file, ``projector_invalid``, ``path_not_allowed``,
            ``disk_space_insufficient``, ``output_dir_not_writable``, ``out_of_memory``, ``dependency_missing``.
    """
    conversion = open_conversion(
        model, overlay=overlay, tokenizer=tokenizer, gguf_dtype=gguf_dtype, naming=naming, setting=setting
    )
    written = write_conversion(conversion, out_path, setting)
    return describe_result(conversion.plan, written, conversion.upstream)


@dataclass(frozen=True)
class Conversion:
    """A conversion before anything is written.

    Attributes:
        base: The base model, open.
        upstream: The conversion package.
        plan: What would be written.
        identity: Digest over everything that decides the file's bytes.
    """

    base: BaseModel
    upstream: Upstream
    plan: ConversionPlan
    identity: str


def open_conversion(
    model: Path | BaseModel,
    *,
    overlay: Overlay | None = None,
    tokenizer: TokenizerChoice | None = None,
    gguf_dtype: str = "auto",
    naming: Naming = OWN_CARD,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> Conversion:
    """Open a model and plan its conversion. Reads no weights. Arguments and errors as :func:`convert`."""
    base = _opened(model, overlay, setting)
    upstream, plan = plan_conversion(
        base, overlay=overlay, tokenizer=tokenizer, gguf_dtype=gguf_dtype, naming=naming, setting=setting
    )
    identity = input_fingerprint(plan.header, base, overlay, upstream.version, plan.beside)
    return Conversion(base, upstream, plan, identity)


def write_conversion(conversion: Conversion, out_path: Path, setting: WorkSetting) -> WrittenFile:
    """Write the file that was planned. Arguments and errors as :func:`convert`."""
    from worker.models.convert.evaluate import shared_cores
    from worker.models.convert.writer import write_plan

    keep_freed_memory()
    threads = setting.threads or min(8, os.cpu_count() or 1)
    with shared_cores(threads):
        return write_plan(
            conversion.plan,
            out_path,
            fingerprint=conversion.identity,
            setting=replace(setting, threads=threads),
        )


def reopen_conversion(
    model: Path | BaseModel,
    header: bytes,
    *,
    overlay: Overlay | None = None,
    tokenizer: TokenizerChoice,
    gguf_dtype: str = "auto",
    setting: WorkSetting = ON_THIS_MACHINE,
) -> Conversion:
    """Open a conversion of a text model again whose header is known, for its tensors: much quicker than planning it.

    Args:
        model: As :func:`convert`.
        header: The header as it was planned.
        overlay: As :func:`convert`, as all that follows.
        tokenizer: The same.
        gguf_dtype: The same.
        setting: The same.

    Raises:
        PackagingError: as :func:`convert`; ``base_model_invalid`` where the model is another one by now.
    """
    from worker.models.convert.plan import StagedModel, plan_model

    base = _opened(model, overlay, setting)
    upstream = load_upstream(setting.llama_cpp_dir)
    weights = MergedWeights(base, overlay)
    with _scratch(setting) as scratch:
        changes = shown_changes(base.config, weights.config_changes(), upstream.conversion.TEXT_MODEL_MAP)
        staged = stage(scratch, weights, tokenizer, changes, card=None, allowed_roots=setting.roots)
        plan = plan_model(
            StagedModel(upstream, staged, weights),
            gguf_dtype=gguf_dtype,
            model_name=None,
            metadata_override=None,
            header=header,
        )
    planned = GGUFFile(str(base.directory), memoryview(header), _ANY_SIZE)
    if [(t.name, t.type.name, t.shape) for t in planned.tensors] != [
        (t.name, t.type, normal_shape(t.shape)) for t in plan.tensors
    ]:
        raise PackagingError(
            ErrorCode.BASE_MODEL_INVALID,
            f"{base.directory} is not the model any more whose conversion was planned",
            remedy="Replay from prepare, which looks at the model again.",
        )
    beside = files_beside(tokenizer.places, setting.roots)
    return Conversion(base, upstream, plan, input_fingerprint(header, base, overlay, upstream.version, beside))


def conversion_identity(
    model: Path | BaseModel,
    header: bytes,
    *,
    overlay: Overlay | None = None,
    tokenizer: TokenizerChoice,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> str:
    """``Conversion.identity`` of what :func:`reopen_conversion` would open, without opening it."""
    base = _opened(model, overlay, setting)
    beside = files_beside(tokenizer.places, setting.roots)
    return input_fingerprint(header, base, overlay, upstream_version(setting.llama_cpp_dir), beside)


def _opened(model: Path | BaseModel, overlay: Overlay | None, setting: WorkSetting) -> BaseModel:
    """The base model; alone, its weights are left as they are stored where upstream's converter reads them itself."""
    if isinstance(model, BaseModel):
        return model
    return open_base_model(model, allowed_roots=setting.roots, as_stored=overlay is None)


@contextmanager
def _scratch(setting: WorkSetting) -> Iterator[Path]:
    """A directory to stage a model in."""
    with tempfile.TemporaryDirectory(prefix="convert-", dir=setting.scratch_dir) as scratch, room_errors(Path(scratch)):
        yield Path(scratch)


def plan_conversion(
    base: BaseModel,
    *,
    overlay: Overlay | None = None,
    tokenizer: TokenizerChoice | None = None,
    gguf_dtype: str = "auto",
    naming: Naming = OWN_CARD,
    vocabulary_rows: int | None = None,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> tuple[Upstream, ConversionPlan]:
    """Plan a conversion: the exact header, and every tensor's type, shape and place. Reads no weights.

    Arguments and errors as :func:`convert`. ``vocabulary_rows`` is for a merge planned before its overlay is built:
    what ``vocabulary.adapter_rows`` says of an adapter that resized the vocabulary, whose rows the new tokens need.
    """
    from worker.models.convert.plan import StagedModel, plan_model

    metadata = naming.metadata
    is_projector = naming.part is ModelPart.PROJECTOR
    if tokenizer is None:
        tokenizer = find_tokenizer(None, base.directory, allowed_roots=setting.roots)
    changes = overlay.config_changes() if overlay is not None else {}
    if not is_projector:
        check_architecture({**base.config, **changes}, setting.llama_cpp_dir)
        changes = shown_changes(base.config, changes, supported_architectures(setting.llama_cpp_dir))
    if vocabulary_rows is not None:
        changes |= dict.fromkeys(config_keys(base, "vocab_size"), vocabulary_rows)
    check_vocabulary(tokenizer, embedding_rows(base, changes), base.directory)
    modules = SentenceModules() if is_projector else read_sentence_modules(tokenizer.places, setting.roots)
    upstream = load_upstream(setting.llama_cpp_dir)
    weights = MergedWeights(base, overlay, rows=vocabulary_rows)
    with _scratch(setting) as scratch:
        card = read_card(base.directory) if metadata is None else Card(metadata.card, "")
        staged = stage(scratch, weights, tokenizer, changes, card=card, allowed_roots=setting.roots)
        override = None
        if metadata is not None:
            override = scratch / "metadata.json"
            override.write_text(json.dumps(dict(metadata.overrides)), encoding="utf-8")
        plan = plan_model(
            StagedModel(upstream, staged, weights),
            gguf_dtype=gguf_dtype,
            model_name=naming.model_name,
            metadata_override=override,
            finish=None if is_projector else _trained_end_of_turn(tokenizer),
            part=naming.part,
        )
    if is_projector:
        check_complete(plan.metadata, (tensor.name for tensor in plan.tensors))
        return upstream, plan
    has_projector = naming.projector_left_out is not None
    nowhere = set(plan.left_out).intersection(naming.projector_left_out or plan.left_out)
    notes = check_consumed(weights, nowhere, plan.architecture, beside_projector=has_projector)
    if (window := lost_window(plan.architecture, base.text_config, plan.metadata)) is not None:
        notes = (*notes, window)
    check_dense(modules, [tensor.name for tensor in plan.tensors], plan.architecture)
    beside = files_beside(tokenizer.places, setting.roots, modules)
    return upstream, replace(plan, notes=(*notes, *modules.notes()), beside=beside)


def _trained_end_of_turn(tokenizer: TokenizerChoice) -> Callable[[Any], None]:
    """Name a second end token that training introduced, which llama.cpp may not know by its text.

    Only a generation config that training wrote counts: a base model's own list is what upstream leaves to llama.cpp.
    """

    def finish(writer: Any) -> None:
        ends = tokenizer.generation_config.get("eos_token_id")
        values = writer.kv_data[0]
        if not tokenizer.trained_generation or not isinstance(ends, list) or _EOS not in values or _EOT in values:
            return
        others = [end for end in ends if type(end) is int and end != values[_EOS].value]
        if others:
            writer.add_eot_token_id(others[0])

    return finish


def input_fingerprint(
    header: bytes, base: BaseModel, overlay: Overlay | None, converter: str, beside: Sequence[Path] = ()
) -> str:
    """Digest over everything that decides the file's bytes. The header holds config, tokenizer and metadata already.

    ``beside`` are weight files besides those of ``base``, as ``ConversionPlan.beside``.
    """
    digest = hashlib.sha256(header)
    digest.update(f"{converter}\0{base.fingerprint}\0".encode())
    for path in sorted({entry.file for entry in base.tensors.values()} | set(beside)):
        info = path.stat()
        digest.update(f"{path.name}\0{info.st_size}\0{info.st_mtime_ns}\0".encode())
    if overlay is not None:
        with overlay.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def describe_result(plan: ConversionPlan, written: WrittenFile, upstream: Upstream) -> ConvertResult:
    """What was planned and what was written, together."""
    file_type = plan.metadata.get("general.file_type")
    return ConvertResult(
        path=written.path,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        architecture=plan.architecture,
        parameters=plan.parameters,
        tensor_types=dict(Counter(tensor.type for tensor in plan.tensors)),
        file_type=None if file_type is None else int(file_type),
        resumed_bytes=written.resumed_bytes,
        left_out=plan.left_out,
        notes=plan.notes,
        converter=upstream.version,
    )
