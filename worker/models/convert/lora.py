"""``export_lora``: adapter pairs to a LoRA GGUF that llama.cpp adds to the base model at run time.

The tensors take the way that the base model's own tensors take through upstream's model class, as :class:`LowRank` in
place of weights, so names, row permutations, fused projections and experts come out as in the converted base. llama.cpp
multiplies with ``adapter.lora.alpha / rank of the tensor``; every other scaling is in ``B`` already
(``worker.models.adapters.export``). Token embeddings are looked up by row, so there llama.cpp wants ``A`` as (tokens,
r).
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import room_errors
from worker.models.adapters.export import LoraPair
from worker.models.checkpoint import BaseModel
from worker.models.convert.card import Card
from worker.models.convert.consumed import is_of_another_sense, listed
from worker.models.convert.lowrank import LowRank
from worker.models.convert.metadata import Naming
from worker.models.convert.pipeline import ConvertResult, describe_result, input_fingerprint
from worker.models.convert.plan import (
    FILE_TYPES,
    UNUSED_OUTPUT,
    ConversionPlan,
    StagedModel,
    read_class,
    read_plan,
    shown_weights,
    streamed_class,
)
from worker.models.convert.staging import display_name, stage
from worker.models.convert.tokenizer import tokenizer_beside
from worker.models.convert.upstream import Upstream, check_architecture, load_upstream
from worker.models.convert.upstream_errors import upstream_errors
from worker.models.convert.weights import MergedWeights
from worker.models.convert.writer import write_plan
from worker.models.hardening import locked_down
from worker.setting import ON_THIS_MACHINE, WorkSetting

_EXPERT = re.compile(r"(.+\.experts\.)\d+\..+\.weight")
_REMEDY = "Merge the adapter instead (template `merge_quantize` or `merge`)."

# Weights that llama.cpp b11434 multiplies with directly, past its adapters (``ggml_mul_mat`` in place of
# ``build_lora_mm`` in src/models): an adapter of one loads and does nothing. Compressed attention (MLA) of any model:
_NEVER_APPLIED = frozenset(
    {"attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b", "indexer.attn_k", "indexer.attn_q_b"}
)
# ... and in single architectures:
_NOT_APPLIED: Mapping[str, frozenset[str]] = {
    "deepseek2": frozenset({"attn_q", "output"}),
    "deepseek32": frozenset({"output"}),
    "deepseek4": frozenset({"output"}),
    "glm-dsa": frozenset({"output"}),
    "kimi-linear": frozenset({"attn_q", "attn_qkv", "attn_output", "output"}),
    "plm": frozenset({"attn_q"}),
    "rwkv6": frozenset({"time_mix_w1", "time_mix_w2", "time_mix_decay_w1", "time_mix_decay_w2"}),
    "rwkv7": frozenset({f"time_mix_{part}{number}" for part in ("w", "a", "v", "g") for number in (1, 2)}),
}


def export_lora(
    pairs: Sequence[LoraPair],
    base: BaseModel,
    out_path: Path,
    *,
    gguf_dtype: str = "f16",
    naming: Naming,
    invocation_tokens: Sequence[int] = (),
    setting: WorkSetting = ON_THIS_MACHINE,
) -> ConvertResult:
    """Write a LoRA GGUF.

    Memory: the adapter in float32, twice. The base model is read by headers only.

    Args:
        pairs: From ``normalise_for_export``; all with the same alpha.
        base: The base model the pairs belong to.
        out_path: File to make; replaced if it exists. Its directory must exist.
        gguf_dtype: ``f32``, ``f16``, ``bf16`` or ``q8_0`` (rows whose length 32 does not divide become F16).
        naming: What the file says of itself; without metadata the base model's name is the only other thing.
        invocation_tokens: Token ids after which an activated LoRA applies; llama.cpp's server looks for them.
        setting: As for :func:`~worker.models.convert.writer.write_plan`.

    Raises:
        StopRequested: As asked.
        PackagingError: ``adapter_unsupported`` naming the tensor that a pair cannot express,
            ``unsupported_architecture``, ``base_model_invalid``, ``disk_space_insufficient``,
            ``output_dir_not_writable``.
    """
    check_architecture(base.config, setting.llama_cpp_dir)
    metadata = naming.metadata
    upstream = load_upstream(setting.llama_cpp_dir)
    card = Card({"base_model": display_name(base.directory)} if metadata is None else metadata.card, "")
    with tempfile.TemporaryDirectory(prefix="lora-", dir=setting.scratch_dir) as scratch, room_errors(Path(scratch)):
        weights = MergedWeights(base)
        tokenizer = tokenizer_beside(base.directory, setting.roots)
        staged = stage(Path(scratch), weights, tokenizer, {}, card=card, allowed_roots=setting.roots)
        override = Path(scratch) / "metadata.json"
        override.write_text(json.dumps(dict(metadata.overrides) if metadata is not None else {}), encoding="utf-8")
        plan = _plan_lora(
            StagedModel(upstream, staged, weights),
            pairs,
            gguf_dtype=gguf_dtype,
            name=naming.model_name,
            override=override,
            invocation_tokens=invocation_tokens,
        )
    written = write_plan(
        plan,
        out_path,
        fingerprint=_fingerprint(plan, base, upstream),
        setting=setting,
    )
    return describe_result(plan, written, upstream)


def _plan_lora(
    staged: StagedModel,
    pairs: Sequence[LoraPair],
    *,
    gguf_dtype: str,
    name: str | None,
    override: Path,
    invocation_tokens: Sequence[int],
) -> ConversionPlan:
    upstream, weights = staged.upstream, staged.weights
    with locked_down(), torch.no_grad(), shown_weights(upstream, weights):
        with upstream_errors(ErrorCode.BASE_MODEL_INVALID, "reading config.json"):
            architecture, own_class = read_class(upstream, staged.directory)
        shapes = {name: entry.shape for name, entry in weights.base.tensors.items()}
        left_out: list[str] = []
        model_class = lora_class(upstream, own_class, architecture, pairs, shapes, left_out=left_out)
        with upstream_errors(ErrorCode.ADAPTER_UNSUPPORTED, f"exporting LoRA for {architecture}"):
            model = model_class(
                staged.directory,
                upstream.gguf.LlamaFileType[FILE_TYPES[gguf_dtype]],
                staged.directory / UNUSED_OUTPUT,
                metadata_override=override,
                model_name=name,
            )
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
            if invocation_tokens:
                types = upstream.gguf.GGUFValueType
                key = upstream.gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS
                model.gguf_writer.add_key_value(key, list(invocation_tokens), types.ARRAY, types.UINT32)
            plan = read_plan(upstream, model.gguf_writer)
    if left_out and not plan.tensors:
        raise inexpressible(left_out[0], "llama.cpp applies adapters to text models only, and none of it is trained")
    if left_out:
        note = f"trained parts for pictures or sound are not in the LoRA file: {listed(sorted(left_out))}"
        plan = replace(plan, notes=(note,), left_out=tuple(sorted(left_out)))
    return plan


def lora_class(
    upstream: Upstream,
    model_class: type[Any],
    architecture: str,
    pairs: Sequence[LoraPair],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    left_out: list[str],
) -> type[Any]:
    """Upstream's model class, fed with pairs in place of weights.

    Args:
        upstream: The conversion package.
        model_class: Its class for the architecture.
        architecture: Name, for messages.
        pairs: The adapter.
        shapes: Shape of every tensor of the base model.
        left_out: Is filled with the adapted weights of parts for pictures and sound, which no text model's file has.
    """
    streamed = streamed_class(upstream, model_class, architecture, shapes)

    class Lora(streamed):  # type: ignore[misc, valid-type]
        model_arch = model_class.model_arch

        def set_vocab(self) -> None:
            """A LoRA file holds no vocabulary."""

        def set_type(self) -> None:
            self.gguf_writer.add_type(upstream.gguf.GGUFType.ADAPTER)
            self.gguf_writer.add_string(upstream.gguf.Keys.Adapter.TYPE, "lora")

        def set_gguf_parameters(self) -> None:
            self.gguf_writer.add_float32(upstream.gguf.Keys.Adapter.LORA_ALPHA, float(pairs[0].alpha))

        def generate_extra_tensors(self) -> Iterable[tuple[str, Any]]:
            return ()

        def dequant_model(self) -> None:
            """The base's weights are not converted here."""

        def get_tensors(self) -> Iterator[tuple[str, Any]]:
            for pair in pairs:
                named = self.filter_tensors((pair.name, lambda: None))
                if named is None and not pair.b.any():
                    continue  # never trained: a tower of pictures, an encoder's pooler
                if named is None and is_of_another_sense(pair.name):
                    left_out.append(pair.name)
                    continue
                if named is None:
                    raise inexpressible(pair.name, f"{architecture} leaves this tensor out of its GGUF file")
                # a Conv1D weight is stored (i, o): the update of what is stored is (B @ A).T
                transposed = pair.transposed
                a, b = (pair.b.transpose(-1, -2), pair.a.transpose(-1, -2)) if transposed else (pair.a, pair.b)
                yield named[0], LowRank(a, b)
            for name, (rows, columns) in _experts_without_pair(pairs, shapes):
                yield (
                    self.filter_tensors((name, lambda: None))[0],
                    LowRank(torch.zeros(1, columns), torch.zeros(rows, 1)),
                )

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            try:
                mapped = list(super().modify_tensors(data_torch, name, bid))
            except (NotImplementedError, AttributeError) as error:
                raise inexpressible(name, f"its way to GGUF needs {error}") from error
            if name == "lm_head.weight" and not mapped:
                raise inexpressible(name, "the base model's head is its embedding")
            for new_name, update in mapped:
                leaf = re.sub(r"^blk\.\d+\.|\.weight$", "", new_name)
                if leaf in _NEVER_APPLIED or leaf in _NOT_APPLIED.get(self.gguf_writer.arch, ()):
                    raise inexpressible(
                        name, f"llama.cpp applies no adapter to {new_name} of {self.gguf_writer.arch} models"
                    )
                if not isinstance(update, LowRank):
                    raise inexpressible(name, f"it becomes {new_name}, which is no product")
                if "_exps" in new_name and not update.b.any():
                    continue  # made of stand-ins only
                a, b = update.full_a(), update.b
                if new_name == "token_embd.weight":
                    a, b = b, a.transpose(-1, -2)
                yield f"{new_name}.lora_a", a.contiguous()
                yield f"{new_name}.lora_b", b.contiguous()

    Lora.__name__ = Lora.__qualname__ = model_class.__name__
    return Lora


def _experts_without_pair(
    pairs: Sequence[LoraPair], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Expert weights of adapted layers that the adapter leaves alone: upstream stacks a layer only when it has all."""
    adapted = {pair.name for pair in pairs}
    layers = {match[1] for name in adapted if (match := _EXPERT.fullmatch(name))}
    for name, shape in shapes.items():
        match = _EXPERT.fullmatch(name)
        if match and match[1] in layers and name not in adapted and len(shape) == 2:
            yield name, (shape[0], shape[1])


def inexpressible(name: str, why: str) -> PackagingError:
    """The error for an adapted tensor that a LoRA file cannot express."""
    return PackagingError(
        ErrorCode.ADAPTER_UNSUPPORTED,
        f"the adapter of {name} cannot be written as a LoRA file: {why}",
        remedy=_REMEDY,
        fields={"feature": "lora export", "tensor": name},
    )


def _fingerprint(plan: ConversionPlan, base: BaseModel, upstream: Upstream) -> str:
    """The header says nothing of the factors' values, so they are hashed; they are small and in memory."""
    digest = hashlib.sha256(input_fingerprint(plan.header, base, None, upstream.version).encode())
    for tensor in plan.tensors:
        digest.update(plan.evaluator.bytes_of(tensor.value).data)
    return digest.hexdigest()
