"""Every file that upstream's converter opens in a model directory, and what is done about each.

Upstream decides by files as much as by ``config.json``: a pooling directory makes an embedding model, a heading of the
model card a reranker. :data:`CONSULTED` is the one list of them, written from the source of the packages ``conversion``
and ``gguf``; a test walks that source and fails where a file is opened that the list lacks. ``staging`` writes what
is ``WRITTEN``, ``tokenizer`` finds what is ``TOKENIZER``, and :func:`stage_consulted` brings the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from worker.models.checkpoint.files import read_json, read_json_list, resolve_member
from worker.models.checkpoint.headers import read_safetensors_header
from worker.models.convert.tokenizer import hub_blobs

MODULES, CARD_FILE, MODULE_CONFIG, MODULE_WEIGHTS = "modules.json", "README.md", "config.json", "model.safetensors"
MODULE = "{module}"
"""In a name of the table: a directory that ``modules.json`` names."""

_MAX_MODULES, _MAX_MODULE_BYTES = 64, 1 << 30
_INVALID = ErrorCode.BASE_MODEL_INVALID
# keys that name code; transformers follows them only when told to trust it, and here they are not even there
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")


class Handling(StrEnum):
    """What becomes of a file that upstream opens."""

    WRITTEN = "written"  # composed anew of what was read and checked
    TOKENIZER = "tokenizer"  # belongs to the tokenizer that was chosen, and is linked
    BASE = "base"  # JSON of the base model, written again without keys that name code
    NEAREST = "nearest"  # the same, of the checkpoint where it has one, else of what lies behind it
    WEIGHTS = "weights"  # safetensors beside the model's own, linked once their header is read
    SHARDS = "shards"  # the model's own weights: empty files, whose tensors are handed over
    PROJECTOR = "projector"  # opened only for the tower of pictures or sound, which a text model's file has not
    OPTION = "option"  # opened only with an option of upstream's that is never given
    PACKAGE = "package"  # no file of the model: it lies beside upstream's own source


@dataclass(frozen=True)
class ConsultedFile:
    """One file, or one kind of files.

    Attributes:
        name: Path inside the model directory, with ``/``; ``*`` and :data:`MODULE` stand for one part of it.
        handling: What is done about it.
        decides: What upstream takes from it.
    """

    name: str
    handling: Handling
    decides: str


def _rows(handling: Handling, decides: Mapping[str, str]) -> Iterator[ConsultedFile]:
    return (ConsultedFile(name, handling, what) for name, what in decides.items())


CONSULTED: tuple[ConsultedFile, ...] = (
    *_rows(
        Handling.WRITTEN,
        {
            "config.json": "architecture, sizes, special ids",
            CARD_FILE: "`general.*`; the heading `# Qwen3-Reranker` makes a reranker",
            "generation_config.json": "sampling, `suppress_tokens`",
            "tokenizer_config.json": "kinds of added tokens, special tokens, class, template",
            "chat_template.jinja": "template",
            "chat_template.json": "template, in an older form; written as `chat_template.jinja`",
            "additional_chat_templates/*.jinja": "named templates",
        },
    ),
    *_rows(
        Handling.TOKENIZER,
        {
            "tokenizer.json": "vocabulary, merges, kinds of added tokens, normalizer, pre-tokenizer",
            "tokenizer.model": "sentencepiece vocabulary, scores, kinds",
            "tokenizer.model.v3": "a name that upstream asks to change",
            "spiece.model": "sentencepiece vocabulary of T5",
            "sentencepiece.bpe.model": "sentencepiece vocabulary of XLM-RoBERTa",
            "tekken.json": "Mistral's own vocabulary",
            "tokenizer.jsonl": "PLaMo's vocabulary",
            "vocab.json": "vocabulary, read by transformers",
            "vocab.txt": "WordPiece vocabulary, read by transformers",
            "merges.txt": "merges where `tokenizer.json` has none",
            "added_tokens.json": "added tokens, before transformers 4.34",
            "special_tokens_map.json": "special tokens, read by transformers",
            "rwkv_vocab_v20230424.txt": "RWKV's vocabulary",
        },
    ),
    *_rows(Handling.BASE, {"hf_quant_config.json": "how ModelOpt quantized the weights"}),
    *_rows(
        Handling.NEAREST,
        {
            MODULES: "which directories hold pooling and dense layers",
            f"{MODULE}/{MODULE_CONFIG}": "kind of pooling, sizes of a dense layer",
            "preprocessor_config.json": "sizes of pictures and sound",
            "processor_config.json": "the same, in a newer form",
        },
    ),
    *_rows(
        Handling.WEIGHTS,
        {
            f"{MODULE}/{MODULE_WEIGHTS}": "a dense layer after the pooling",
            f"1_Dense/{MODULE_WEIGHTS}": "the dense layer of LFM2-ColBERT, whatever `modules.json` says",
        },
    ),
    *_rows(
        Handling.SHARDS,
        {
            "model*.safetensors": "weights",
            "pytorch_model.bin": "weights as a pickle, which is refused",
            "pytorch_model-*.bin": "the same in parts",
            "model.safetensors.index.json": "which file holds a weight",
            "pytorch_model.bin.index.json": "the same for pickles",
        },
    ),
    *_rows(
        Handling.PROJECTOR,
        {
            "audio_tokenizer/config.json": "sound of MiMo",
            f"audio_tokenizer/{MODULE_WEIGHTS}": "sound of MiMo",
            "speech_tokenizer/config.json": "sound of Qwen3-TTS",
            f"speech_tokenizer/{MODULE_WEIGHTS}": "sound of Qwen3-TTS",
        },
    ),
    *_rows(
        Handling.OPTION,
        {"params.json": "`--mistral-format`", "consolidated*.safetensors": "`--mistral-format`"},
    ),
    *_rows(
        Handling.PACKAGE,
        {
            "models/templates/*": "templates of what has none of its own; the wheel ships none of these files",
            "models/templates/llama-cpp-rwkv-world.jinja": "RWKV; where it is missing, the name `rwkv-world`",
            "models/templates/deepseek-ai-DeepSeek-V4.jinja": "DeepSeek-V4",
            "models/templates/deepseek-ai-DeepSeek-V4-Flash-0731.jinja": "DeepSeek-V4, by the directory's name",
            "models/templates/Mistral-Small-3.2-24B-Instruct-2506.jinja": "tekken.json, version 11",
            "models/templates/unsloth-mistral-Devstral-Small-2507.jinja": "tekken.json, version 13",
            "models/ggml-vocab-*.gguf": "vocabularies for models without a tokenizer, which are refused before",
        },
    ),
)
"""All of them."""


def named(*handlings: Handling) -> tuple[str, ...]:
    """Names of all files that are handled so."""
    return tuple(row.name for row in CONSULTED if row.handling in handlings)


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON object without keys that name code, at any depth."""
    kept = {}
    for key, value in config.items():
        if key not in _CODE_KEYS:
            kept[key] = _value_without_code(value)
    return kept


def _value_without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return without_code(value)
    return [_value_without_code(item) for item in value] if isinstance(value, list) else value


def stage_consulted(staged: Path, base_dir: Path, places: Sequence[Path], allowed_roots: Roots) -> None:
    """Bring what upstream reads beside config, card, tokenizer and weights.

    Args:
        staged: The directory that upstream is shown.
        base_dir: The base model.
        places: Where a tokenizer is looked for, the checkpoint first; they include ``base_dir``.
        allowed_roots: Where symlinks of these directories may lead.

    Raises:
        PackagingError: ``base_model_invalid`` naming the file that is damaged, missing or of an unreasonable size;
            ``path_not_allowed``.
    """
    for row in CONSULTED:
        if MODULE in row.name or row.name == MODULES or row.handling not in (Handling.BASE, Handling.NEAREST):
            continue
        owner = _owner(row.name, [base_dir] if row.handling is Handling.BASE else places)
        if owner is not None:
            _write(staged / row.name, without_code(read_json(_member(owner, row.name, allowed_roots), _INVALID)))
    owner = _owner(MODULES, places)
    if owner is not None:
        modules = read_modules(owner, allowed_roots)
        _write(staged / MODULES, [without_code(module) for module in modules])
        for module in modules:
            _stage_module(staged, owner, module, allowed_roots)
    for name, real in weights_beside(places, allowed_roots).items():
        _link(staged, name, real)


def read_modules(directory: Path, allowed_roots: Roots) -> list[dict[str, Any]]:
    """The entries of ``modules.json``, as sentence-transformers writes it: objects with a ``type`` and a ``path``.

    Raises:
        PackagingError: ``base_model_invalid`` where it is anything else.
    """
    path = _member(directory, MODULES, allowed_roots)
    modules = read_json_list(path, _INVALID)
    for number, module in enumerate(modules):
        whole = isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("type", "path"))
        if not whole or number >= _MAX_MODULES:
            fact = "has no type and path" if not whole else f"is one more than the {_MAX_MODULES} that are accepted"
            raise PackagingError(_INVALID, f"{path}: entry {number} {fact}", fields={"file": MODULES})
    return modules


def weights_beside(places: Sequence[Path], allowed_roots: Roots) -> dict[str, Path]:
    """Name inside the staged directory -> real path, of the weights that lie beside the model's own and are read."""
    weights = {}
    for name in named(Handling.WEIGHTS):
        if MODULE not in name and (owner := _owner(name, places)) is not None:
            weights[name] = _member(owner, name, allowed_roots)
    return weights


def _stage_module(staged: Path, owner: Path, module: Mapping[str, Any], allowed_roots: Roots) -> None:
    directory = module["path"]
    if not directory:  # the transformer itself, whose files are the model's
        return
    if (staged / directory.partition("/")[0]).is_file():
        raise PackagingError(_INVALID, f"{owner / MODULES}: {directory} is the name of a file of the model")
    config = f"{directory}/{MODULE_CONFIG}"
    path = _member(owner, config, allowed_roots)
    if path.is_file():
        _write(staged / config, without_code(read_json(path, _INVALID)))
    elif module["type"].endswith("Pooling"):
        raise PackagingError(
            _INVALID,
            f"{owner / MODULES} names pooling in {directory}, and {config} is missing",
            remedy=f"Copy {config} of the model beside {MODULES}.",
            fields={"file": config},
        )
    weights = f"{directory}/{MODULE_WEIGHTS}"
    real = _member(owner, weights, allowed_roots)
    if module["type"].endswith("Dense") and real.is_file():
        _link(staged, weights, real)


def _link(staged: Path, name: str, real: Path) -> None:
    if real.stat().st_size > _MAX_MODULE_BYTES:
        raise PackagingError(
            _INVALID,
            f"{name} has {real.stat().st_size} bytes, at most {_MAX_MODULE_BYTES} are accepted for one dense layer",
            fields={"file": name},
        )
    read_safetensors_header(real)
    link = staged / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(real)


def _member(owner: Path, name: str, allowed_roots: Roots) -> Path:
    return resolve_member(owner, name, allowed_roots.also(*hub_blobs(owner)), _INVALID)


def _owner(name: str, places: Sequence[Path]) -> Path | None:
    return next((place for place in places if (place / name).is_file()), None)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
