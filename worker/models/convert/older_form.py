"""A tokenizer as transformers 4 would have saved it, which is the form that upstream reads whole.

transformers 5 says in ``tokenizer.json`` alone which tokens are control or user-defined; upstream's sentencepiece
readers look into ``tokenizer_config.json`` (``added_tokens_decoder``), ``added_tokens.json`` and ``tokenizer.model``.
What is missing there is composed of ``tokenizer.json``; where two files contradict each other, that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.checkpoint.files import read_json
from worker.models.convert.sentencepiece_model import sentencepiece_model
from worker.models.convert.tokenizer import JSON, SENTENCEPIECES, TokenizerChoice, json_vocabulary, sentencepiece_pieces

ADDED_TOKENS, SPECIAL_TOKENS_MAP, DECODER = "added_tokens.json", "special_tokens_map.json", "added_tokens_decoder"
# what only transformers 5 writes into tokenizer_config.json
_NEW_KEYS = ("backend", "is_local")


def older_config(tokenizer: TokenizerChoice) -> dict[str, Any]:
    """``tokenizer_config.json`` with ``added_tokens_decoder``.

    A directory from before transformers 4.34, which has ``added_tokens.json`` or ``special_tokens_map.json`` and no
    such table, gets only what its other files do not say.

    Raises:
        PackagingError: ``tokenizer_unsupported`` where the table and ``tokenizer.json`` name one id differently.
    """
    config = dict(tokenizer.config)
    added = {int(token["id"]): _flags(token) for token in tokenizer.added_tokens}
    if DECODER in config:
        _check_agreement(tokenizer, config[DECODER], added)
    elif added and is_new_form(tokenizer):
        config[DECODER] = {str(number): added[number] for number in sorted(added)}
    elif added and (file := next((name for name in SENTENCEPIECES if name in tokenizer.files), None)):
        pieces = dict(enumerate(sentencepiece_pieces(tokenizer.files[file])))
        lost = {str(number): flags for number, flags in added.items() if pieces.get(number) != flags["content"]}
        config |= {DECODER: lost} if lost else {}
    if is_new_form(tokenizer) and tokenizer.chat_template is not None and _marks_only_the_start(tokenizer):
        # llama.cpp would put a space after every control token, where this tokenizer puts one before the text at most
        config["add_prefix_space"] = False
    return config


def _marks_only_the_start(tokenizer: TokenizerChoice) -> bool:
    step = read_json(tokenizer.files[JSON], ErrorCode.TOKENIZER_UNSUPPORTED).get("pre_tokenizer")
    return isinstance(step, dict) and step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"


def older_files(tokenizer: TokenizerChoice) -> dict[str, bytes | dict[str, Any]]:
    """File name -> content, of what transformers 4 saves beside and transformers 5 does not."""
    if JSON not in tokenizer.files:
        return {}
    description = read_json(tokenizer.files[JSON], ErrorCode.TOKENIZER_UNSUPPORTED)
    files: dict[str, bytes | dict[str, Any]] = {}
    has_sentencepiece = any(name in tokenizer.files for name in SENTENCEPIECES)
    if not has_sentencepiece and (made := sentencepiece_model(description)) is not None:
        files[made[0]] = made[1]
    if (files or has_sentencepiece) and is_new_form(tokenizer):
        rows = len(json_vocabulary(description))
        beyond = {token["content"]: token["id"] for token in tokenizer.added_tokens if token["id"] >= rows}
        files |= {ADDED_TOKENS: beyond} if beyond else {}
    return files


def is_new_form(tokenizer: TokenizerChoice) -> bool:
    """Whether transformers 5 saved it."""
    if DECODER in tokenizer.config or JSON not in tokenizer.files:
        return False
    if any(key in tokenizer.config for key in _NEW_KEYS):
        return True
    return not {ADDED_TOKENS, SPECIAL_TOKENS_MAP} & set(tokenizer.files)


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key != "id"}


def _check_agreement(tokenizer: TokenizerChoice, decoder: Mapping[str, Any], added: Mapping[int, Any]) -> None:
    for key, token in decoder.items():
        text = token.get("content") if isinstance(token, dict) else None
        other = added.get(int(key), {}).get("content") if str(key).isdecimal() else None
        if other is not None and other != text:
            raise PackagingError(
                ErrorCode.TOKENIZER_UNSUPPORTED,
                f"token {key} of {tokenizer.directory} is {text!r} in tokenizer_config.json and {other!r} in {JSON}",
                remedy="Save the tokenizer again with the transformers release that trained with it.",
                fields={"token": key, "config": text, "json": other},
            )
