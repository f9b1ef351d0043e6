"""Which tokenizer goes into the packaged file: the checkpoint's own where it has one, else found by looking back.

Looked at in this order: the checkpoint, its parents up to the run directory, the base model, and what the adapter names
as its base. The first directory with a vocabulary decides everything that belongs to a tokenizer; what only an earlier
directory has wins over it where that can only be meant as a change (a chat template, a generation config).

Light: files and JSON, no torch, no transformers. ``staging`` writes the choice out for upstream; ``vocabulary``
    compares it with the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import NOWHERE_ELSE, Roots
from worker.models.checkpoint.files import read_json, resolve_member

JSON, CONFIG, SENTENCEPIECE, TEKKEN = "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json"
SENTENCEPIECES = (SENTENCEPIECE, "spiece.model", "sentencepiece.bpe.model")
"""Names of a sentencepiece model: of Llama and most others, of T5, of XLM-RoBERTa."""
VOCABULARIES = (
    JSON,
    *SENTENCEPIECES,
    TEKKEN,
    "tokenizer.jsonl",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
    "rwkv_vocab_v20230424.txt",
)
"""Files any one of which makes a directory a tokenizer's."""

COMPANIONS = ("special_tokens_map.json", "added_tokens.json", "merges.txt")
"""Files that belong to a vocabulary beside them."""

_GENERATION_CONFIG = "generation_config.json"
_TEMPLATE, _OLD_TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
# what upstream copies from a generation config into the file -> whether it is a whole number there
_SAMPLING = {
    "top_k": True, "penalty_last_n": True, "mirostat": True, "top_p": False, "min_p": False, "temperature": False,
    "xtc_probability": False, "xtc_threshold": False, "penalty_repeat": False, "mirostat_tau": False,
    "mirostat_eta": False,
}  # fmt: skip
_MAX_SAMPLING = 2**31
_CHECKPOINT_NAME = re.compile(r"(checkpoint-.+|adapter_model|adapter|default|final)")
_MAX_TEMPLATE_BYTES = 4 * 1024 * 1024
_INVALID = ErrorCode.TOKENIZER_UNSUPPORTED

Template = str | list[dict[str, str]]
"""One chat template, or several: ``{"name", "template"}`` each."""


@dataclass(frozen=True)
class TokenizerChoice:
    """The tokenizer of a packaged file.

    Attributes:
        directory: Where its vocabulary was found.
        files: File name -> real path, for every vocabulary file and companion to use.
        config: ``tokenizer_config.json`` with nothing in it that names code or files; empty where there is none.
        chat_template: The template that training used last; None where it has none.
        generation_config: ``generation_config.json`` of the nearest directory that has one.
        trained_generation: Whether that directory is the checkpoint's or the run's, not the base model's.
        places: Every directory looked at, in order.
    """

    directory: Path
    files: Mapping[str, Path]
    config: Mapping[str, Any]
    chat_template: Template | None
    generation_config: Mapping[str, Any]
    trained_generation: bool
    places: tuple[Path, ...]
    added_tokens: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


def tokenizer_beside(base_dir: Path, allowed_roots: Roots) -> TokenizerChoice | None:
    """The base model's own tokenizer, where it has one that can be read; for what is made without a vocabulary.

    Some converters (NomicBERT's, XLM-RoBERTa's) look at it before anything else.
    """
    try:
        return find_tokenizer(None, base_dir, allowed_roots=allowed_roots)
    except PackagingError:
        return None


def find_tokenizer(
    checkpoint_dir: Path | None,
    base_dir: Path,
    adapter_base_path: str | None = None,
    *,
    run_dir: Path | None = None,
    allowed_roots: Roots = NOWHERE_ELSE,
) -> TokenizerChoice:
    """Find the tokenizer; reads small files only.

    Args:
        checkpoint_dir: The checkpoint, or None where the base model is packaged as it is.
        base_dir: The base model.
        adapter_base_path: ``base_model_name_or_path`` of the adapter: a directory, or a Hub id that is looked up in
            the local cache without network.
        run_dir: Where looking upwards from the checkpoint ends; by default the directory that holds ``checkpoint-*``.
        allowed_roots: Where ``adapter_base_path`` and symlinks may lead, besides the directories given.

    Raises:
        PackagingError: ``tokenizer_not_found``, listing the places; ``tokenizer_unsupported`` for damaged files;
            ``path_not_allowed``.
    """
    places = list(_places(checkpoint_dir, base_dir, adapter_base_path, run_dir, allowed_roots))
    for index, directory in enumerate(places):
        vocabularies = _member_files(directory, VOCABULARIES, allowed_roots)
        if not vocabularies:
            continue
        config = _config_of(directory, allowed_roots)
        files = vocabularies | _member_files(directory, COMPANIONS, allowed_roots)
        description = read_json(files[JSON], _INVALID) if JSON in files else {}
        files |= _older_sentencepiece(files, description, places[index + 1 :], allowed_roots)
        generation_dir = next((place for place in places if (place / _GENERATION_CONFIG).is_file()), None)
        return TokenizerChoice(
            directory=directory,
            files=files,
            config=config,
            chat_template=_nearest_template(places[: index + 1], allowed_roots),
            generation_config=_generation_config(generation_dir, allowed_roots),
            trained_generation=generation_dir is not None and generation_dir in _before(base_dir, places),
            places=tuple(places),
            added_tokens=tuple(_added_tokens(description)),
        )
    looked = ", ".join(str(place) for place in places)
    raise PackagingError(
        ErrorCode.TOKENIZER_NOT_FOUND,
        f"no tokenizer.model or tokenizer.json in {looked}",
        fields={"places": [str(place) for place in places]},
    )


def largest_token_id(choice: TokenizerChoice) -> int | None:
    """The highest token id the tokenizer can produce; None for formats that are not read here (tekken, rwkv, ...)."""
    ids = [int(token["id"]) for token in choice.added_tokens if isinstance(token.get("id"), int)]
    if JSON in choice.files:
        ids += json_vocabulary(read_json(choice.files[JSON], _INVALID)).values()
    elif "vocab.json" in choice.files:
        ids += [value for value in read_json(choice.files["vocab.json"], _INVALID).values() if isinstance(value, int)]
    elif SENTENCEPIECE in choice.files:
        pieces = sentencepiece_pieces(choice.files[SENTENCEPIECE])
        ids += [len(pieces) - 1] if pieces else []
    else:
        return None
    if "added_tokens.json" in choice.files:
        ids += [
            value for value in read_json(choice.files["added_tokens.json"], _INVALID).values() if isinstance(value, int)
        ]
    ids += [int(key) for key in choice.config.get("added_tokens_decoder", {}) if str(key).isdecimal()]
    return max(ids, default=None)


def token_id(choice: TokenizerChoice, text: str) -> int | None:
    """Id of a token's text in ``tokenizer.json`` (or the config's own table of added tokens); None where unknown."""
    for token in choice.added_tokens:
        if token.get("content") == text and isinstance(token.get("id"), int):
            return int(token["id"])
    for key, token in choice.config.get("added_tokens_decoder", {}).items():
        if isinstance(token, dict) and token.get("content") == text and str(key).isdecimal():
            return int(key)
    return json_vocabulary(read_json(choice.files[JSON], _INVALID)).get(text) if JSON in choice.files else None


def special_token(choice: TokenizerChoice, kind: str) -> str | None:
    """Text of the ``bos``, ``eos``, ``pad`` or ``unk`` token by ``tokenizer_config.json``; None where it names none."""
    entry = choice.config.get(f"{kind}_token")
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _places(
    checkpoint_dir: Path | None,
    base_dir: Path,
    adapter_base_path: str | None,
    run_dir: Path | None,
    allowed_roots: Roots,
) -> Iterator[Path]:
    candidates: list[Path] = []
    if checkpoint_dir is not None:
        candidates.append(checkpoint_dir)
        place = checkpoint_dir
        while _CHECKPOINT_NAME.fullmatch(place.name) or (run_dir in place.parents):
            place = place.parent
            candidates.append(place)
    candidates.append(base_dir)
    named = _named_base(adapter_base_path, allowed_roots)
    candidates += [named] if named is not None else []
    seen: set[Path] = set()
    for place in candidates:
        real = place.resolve()
        if real not in seen and place.is_dir():
            seen.add(real)
            yield place


def _named_base(named: str | None, allowed_roots: Roots) -> Path | None:
    """Directory of ``base_model_name_or_path``; None where it is not on this machine or not allowed."""
    if not named:
        return None
    path = Path(named)
    if path.is_absolute() and path.is_dir():
        try:
            allowed_roots.resolve(path)
        except PackagingError:
            return None
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", named) and ".." not in named:
        from huggingface_hub import try_to_load_from_cache

        for file in (JSON, SENTENCEPIECE):
            cached = try_to_load_from_cache(named, file)
            if isinstance(cached, str):
                return Path(cached).parent
    return None


def _before(base_dir: Path, places: Sequence[Path]) -> Sequence[Path]:
    """The places that training wrote: those before the base model."""
    real = base_dir.resolve()
    return places[: next((index for index, place in enumerate(places) if place.resolve() == real), len(places))]


def _member_files(directory: Path, names: Iterable[str], allowed_roots: Roots) -> dict[str, Path]:
    roots = allowed_roots.also(*hub_blobs(directory))
    return {name: resolve_member(directory, name, roots, _INVALID) for name in names if (directory / name).is_file()}


def hub_blobs(directory: Path) -> list[Path]:
    """The Hub cache keeps files in ``models--*/blobs`` and links them from ``models--*/snapshots/*``."""
    repository = directory.resolve().parent.parent
    is_cache = repository.name.startswith("models--") and directory.resolve().parent.name == "snapshots"
    return [repository / "blobs"] if is_cache else []


def _config_of(directory: Path, allowed_roots: Roots) -> dict[str, Any]:
    files = _member_files(directory, (CONFIG, "special_tokens_map.json"), allowed_roots)
    config = read_json(files[CONFIG], _INVALID) if CONFIG in files else {}
    if "special_tokens_map.json" in files:
        # before transformers 5 the special tokens could be here only
        for key, value in read_json(files["special_tokens_map.json"], _INVALID).items():
            if key.endswith("_token") and key not in config:
                config[key] = value
    return harmless_config(config)


def harmless_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer config without what names code or files, and with the class name of a tokenizer or none.

    transformers 4 wants ``extra_special_tokens`` to be a map, transformers 5 writes a list and reads both; anything
    else is dropped.
    """
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("auto_map", "init_inputs", "name_or_path", "custom_pipelines", "custom_generate")
        and not key.endswith(("_file", "_files", "_path", "_dir"))
    }
    name = kept.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w*(Tokenizer|Backend)\w*", name, re.ASCII)):
        del kept["tokenizer_class"]
    if not isinstance(kept.get("extra_special_tokens", []), list | dict):
        del kept["extra_special_tokens"]
    if not isinstance(kept.get("added_tokens_decoder", {}), dict):
        del kept["added_tokens_decoder"]
    return kept


def _nearest_template(places: Sequence[Path], allowed_roots: Roots) -> Template | None:
    for directory in places:
        template = _template_of(directory, allowed_roots)
        if template is not None:
            return template
    return None


def _template_of(directory: Path, allowed_roots: Roots) -> Template | None:
    """The directory's template. Files win over ``tokenizer_config.json``, as they do in transformers."""
    files = _member_files(directory, (_TEMPLATE, _OLD_TEMPLATE, CONFIG), allowed_roots)
    if _TEMPLATE in files:
        default = _read_text(files[_TEMPLATE])
        more = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
        if not more:
            return default
        named = _member_files(directory, (f"{MORE_TEMPLATES}/{path.name}" for path in more), allowed_roots)
        return [{"name": "default", "template": default}] + [
            {"name": Path(name).stem, "template": _read_text(path)} for name, path in named.items()
        ]
    for name in (CONFIG, _OLD_TEMPLATE):
        template = read_json(files[name], _INVALID).get("chat_template") if name in files else None
        if isinstance(template, str):
            return template
        if isinstance(template, dict):
            template = [{"name": key, "template": value} for key, value in template.items()]
        if isinstance(template, list) and template and all(_is_named_template(item) for item in template):
            return [{"name": item["name"], "template": item["template"]} for item in template]
    return None


def _is_named_template(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)


def _read_text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise PackagingError(
            _INVALID, f"{path} has {path.stat().st_size} bytes, at most {_MAX_TEMPLATE_BYTES} are accepted"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PackagingError(_INVALID, f"{path} is not UTF-8") from error


def _generation_config(directory: Path | None, allowed_roots: Roots) -> dict[str, Any]:
    if directory is None:
        return {}
    path = _member_files(directory, (_GENERATION_CONFIG,), allowed_roots)[_GENERATION_CONFIG]
    config = read_json(path, _INVALID)
    for key, whole in _SAMPLING.items():
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or not abs(value) < _MAX_SAMPLING or (whole and value != int(value)):
            wanted = "a whole number" if whole else "a number"
            raise PackagingError(_INVALID, f"{path}: {key} is {str(value)[:40]!r}, not {wanted} that makes sense")
        config[key] = int(value) if whole else value
    return config


def _added_tokens(description: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    added = description.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("id"), int) and isinstance(token.get("content"), str):
            yield token


def json_vocabulary(description: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of ``tokenizer.json``'s model; a list of (token, score) for Unigram models."""
    model = description.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {token: value for token, value in vocabulary.items() if isinstance(value, int)}
    if isinstance(vocabulary, list):
        return {str(entry[0]): index for index, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    return {}


def _older_sentencepiece(
    files: Mapping[str, Path], description: Mapping[str, Any], places: Sequence[Path], allowed_roots: Roots
) -> dict[str, Path]:
    """A sentencepiece model from further back, which transformers 5 no longer saves and some families need.

    Taken only where every piece has the id that the ``tokenizer.json`` that was chosen gives it.
    """
    if JSON not in files or any(name in files for name in VOCABULARIES if name != JSON):
        return {}
    for directory in places:
        pieces = _member_files(directory, SENTENCEPIECES, allowed_roots)
        if pieces:
            vocabulary = json_vocabulary(description)
            return {name: path for name, path in pieces.items() if _same_ids(name, path, vocabulary)}
    return {}


def _same_ids(name: str, path: Path, vocabulary: Mapping[str, int]) -> bool:
    pieces = list(enumerate(sentencepiece_pieces(path)))
    if name == "sentencepiece.bpe.model":  # transformers puts four tokens of its own before the fourth piece
        pieces = [(number + 1, piece) for number, piece in pieces[3:]]
    return bool(pieces) and all(vocabulary.get(piece) == number for number, piece in pieces)


def sentencepiece_pieces(path: Path) -> list[str]:
    """Pieces in id order; empty where the file is no sentencepiece model (tiktoken files share the name)."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError):
        return []
    return [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
