"""Small tokenizers of every family that upstream reads, written into a model's directory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.tiny import TEXT, tiny_tokenizer
from worker.models.convert.upstream import load_upstream
from worker.models.hardening import replaced

BPE_FILE = Path(__file__).parents[1] / "unit" / "convert" / "data" / "bpe_tokenizer.json"
BPE_TOKENS, SPM_TOKENS = 49152, 400
"""The BPE tokenizer is SmolLM's (Apache-2.0) cut down to what upstream's recognition needs, at the original ids."""
WORDPIECE_FILE = Path(__file__).parent / "data" / "wordpiece.json"
"""What upstream's recognition needs of BERT's vocabulary (Apache-2.0), at the original ids."""
Recognise = Callable[[Any, Any], str]
"""Upstream's model and a tokenizer -> the name of its pre-tokenizer."""
_SPACE = "▁"
# tokens that converters of the GLM and Solar families ask for by their text
_ASKED_FOR = ("<|user|>", "[gMASK]", "<|observation|>", "<unk>", "<|startoftext|>")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_PRINTABLE = [chr(code) for code in range(33, 127)]


def _special(index: int, text: str) -> dict[str, Any]:
    return {
        "id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


def _between(ends: dict[str, int], middle: list[str]) -> dict[str, Any]:
    """The step that puts tokens before and after a text, and others between two; ``ends`` has their ids."""
    (begin, _), (end, _) = ends.items()
    before, after = ({"SpecialToken": {"id": text, "type_id": 0}} for text in (begin, end))
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    parting = [{"SpecialToken": {"id": text, "type_id": 0}} for text in middle]
    return {
        "type": "TemplateProcessing", "single": [before, texts[0], after],
        "pair": [before, texts[0], after, *parting, texts[1], after],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ends.items()},
    }  # fmt: skip


def _write(directory: Path, name: str, content: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def llama(directory: Path) -> int:
    """A sentencepiece model, BPE with byte fallback. Returns the number of tokens, as all of these do."""
    tiny_tokenizer(directory)
    return SPM_TOKENS


def gemma3(directory: Path) -> int:
    """The same as Gemma has it: no space before a text."""
    tokens = llama(directory)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    _write(directory, "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, **names})
    return tokens


def gpt2(directory: Path) -> int:
    """Byte-level BPE with a pre-tokenizer that upstream knows."""
    description = json.loads(BPE_FILE.read_text(encoding="utf-8"))
    for index, text in enumerate(_ASKED_FOR, start=49000):
        description["added_tokens"].append({**description["added_tokens"][0], "id": index, "content": text})
    _write(directory, "tokenizer.json", description)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    _write(directory, "tokenizer_config.json", config)
    return BPE_TOKENS


def gpt2_bos(directory: Path) -> int:
    """The same, begun with a token and with one between two texts, as encoders want it."""
    tokens = gpt2(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    ends = {"sep_token": "<|im_end|>", "cls_token": "<|im_start|>", "add_bos_token": True}
    _write(directory, "tokenizer_config.json", config | ends)
    return tokens


def gpt2_ends(directory: Path) -> int:
    """The same, with the step that puts tokens around a text; upstream knows it in :func:`known_with_ends` alone."""
    tokens = gpt2_bos(directory)
    description = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    around = {"<|im_start|>": 1, "<|im_end|>": 2}
    _write(directory, "tokenizer.json", description | {"post_processor": _between(around, [])})
    return tokens


@contextmanager
def known_with_ends() -> Iterator[None]:
    """Have upstream know the BPE tokenizer also where it puts tokens around the text that recognition goes by."""
    text_model = load_upstream().conversion.TextModel
    original = text_model.get_vocab_base_pre
    known = known_or(original, lambda model, tokenizer: str(original(model, _WithoutEnds(tokenizer))))
    with replaced(text_model, "get_vocab_base_pre", known):
        yield


def known_or(original: Recognise, otherwise: Recognise) -> Recognise:
    """Upstream's way to recognise a pre-tokenizer, and another one where it knows none."""

    def known(model: Any, tokenizer: Any) -> str:
        try:
            return str(original(model, tokenizer))
        except NotImplementedError:
            return otherwise(model, tokenizer)

    return known


class _WithoutEnds:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def gemma4(directory: Path) -> int:
    """BPE over whole words with byte fallback, in ``tokenizer.json`` alone."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
    pieces = [*special, *_BYTES, _SPACE, *_PRINTABLE, "th", "he", "in"]
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": [["t", "h"], ["h", "e"], ["i", "n"]],
    }  # fmt: skip
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    description = {
        "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [_special(index, text) for index, text in enumerate(special)], "normalizer": replace,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }  # fmt: skip
    _write(directory, "tokenizer.json", description)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write(directory, "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "mask_token": "<mask>", **names})
    return len(pieces)


def bert(directory: Path) -> int:
    """WordPiece, lower case."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces: dict[str, int] = json.loads(WORDPIECE_FILE.read_text("utf-8"))
    size = max(pieces.values()) + 1
    normalizer = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    part = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    end = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing", "single": [*part, end],
        "pair": [*part, end, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        "special_tokens": {
            text: {"id": text, "ids": [pieces[text]], "tokens": [text]} for text in ("[CLS]", "[SEP]")
        },
    }  # fmt: skip
    description = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": normalizer,
        "added_tokens": [_special(pieces[text], text) for text in special],
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": processor,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": pieces,
        },
    }  # fmt: skip
    _write(directory, "tokenizer.json", description)
    lines = {index: piece for piece, index in pieces.items()}
    text = "".join(f"{lines.get(index, f'[unused{index}]')}\n" for index in range(size))
    (directory / "vocab.txt").write_text(text, encoding="utf-8")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    _write(directory, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **names})
    return size


def t5(directory: Path) -> int:
    """A sentencepiece unigram model."""
    processor = _unigram(directory, "spiece")
    tokens = int(processor.GetPieceSize())
    vocabulary = [[processor.IdToPiece(index), processor.GetScore(index)] for index in range(tokens)]
    _write(directory, "tokenizer.json", _unigram_description(directory / "spiece.model", vocabulary, 2, [0, 1, 2]))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(directory, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", **names})
    return tokens


def xlm_roberta(directory: Path) -> int:
    """A sentencepiece unigram model whose ids fairseq's four tokens shift by one."""
    processor = _unigram(directory, "sentencepiece.bpe", pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    size = int(processor.GetPieceSize())
    own: list[list[Any]] = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    pieces = [[processor.IdToPiece(index), processor.GetScore(index)] for index in range(3, size)]
    vocabulary = [*own, *pieces, ["<mask>", 0.0]]
    special = [0, 1, 2, 3, len(vocabulary) - 1]
    model = directory / "sentencepiece.bpe.model"
    description = _unigram_description(model, vocabulary, 3, special)
    around = _between({"<s>": 0, "</s>": 2}, ["</s>"])
    _write(directory, "tokenizer.json", description | {"post_processor": around})
    names = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>",
        "sep_token": "</s>", "mask_token": "<mask>",
    }  # fmt: skip
    _write(directory, "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", **names})
    return len(vocabulary)


def _unigram(directory: Path, prefix: str, **ids: int) -> Any:
    import sentencepiece

    corpus = directory / "corpus.txt"
    known: dict[str, Any] = ids or {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    corpus.write_text("\n".join(TEXT * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(directory / prefix), model_type="unigram", vocab_size=110,
        hard_vocab_limit=False, minloglevel=2, **known,
    )  # fmt: skip
    corpus.unlink()
    (directory / f"{prefix}.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / f"{prefix}.model"))


def _unigram_description(model: Path, vocabulary: list[list[Any]], unknown: int, special: list[int]) -> dict[str, Any]:
    space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": [_special(index, vocabulary[index][0]) for index in special],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(_charsmap(model)).decode()},
        "pre_tokenizer": space, "decoder": space,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False},
    }  # fmt: skip


def _charsmap(model: Path) -> bytes:
    """``normalizer_spec.precompiled_charsmap`` of a sentencepiece model."""
    from sentencepiece import sentencepiece_model_pb2

    description = sentencepiece_model_pb2.ModelProto()
    description.ParseFromString(model.read_bytes())
    return bytes(description.normalizer_spec.precompiled_charsmap)


FAMILIES: dict[str, Callable[[Path], int]] = {
    "llama": llama, "gpt2": gpt2, "gpt2-bos": gpt2_bos, "gpt2-ends": gpt2_ends, "gemma4": gemma4, "bert": bert,
    "gemma3": gemma3, "t5": t5, "xlm-roberta": xlm_roberta,
}  # fmt: skip
