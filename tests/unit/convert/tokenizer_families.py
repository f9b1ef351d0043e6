"""Small tokenizers of the usual families, each in the form of transformers 4 and of transformers 5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.unit.convert.consulted_samples import put, save_wordpiece, save_xlmr_tokenizer, train_unigram

TEXT = [
    "The packaging service turns finished training runs into files that load.",
    "A checkpoint holds an adapter or full weights; numbers such as 0123456789 and 2026 occur.",
    "Hello, how are you? I'm fine, thanks. What's new in the world of small models?",
    "user assistant system [INST] [/INST] model turn text",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
GEMMA = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


@dataclass(frozen=True)
class Family:
    """One kind of tokenizer.

    Attributes:
        build: Writes a tokenizer that transformers opens; in the form of neither release.
        model: The sample architecture whose converter reads it.
        older_class: ``tokenizer_class`` as transformers 4 wrote it.
        control: Control tokens to add, user_defined: and others.
    """

    build: Callable[[Path], None]
    model: str
    older_class: str
    control: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<tool>")
    user_defined: tuple[str, ...] = ("zebra", "<think>")
    template: str | None = CHATML


def _train(directory: Path, **settings: Any) -> None:
    (directory / "corpus").write_text("\n".join(TEXT * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus"), model_prefix=str(directory / "tokenizer"), model_type="bpe", vocab_size=400,
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False, **settings,
    )  # fmt: skip
    (directory / "corpus").unlink()
    (directory / "tokenizer.vocab").unlink()


def _llama(directory: Path) -> None:
    _train(directory, unk_id=0, bos_id=1, eos_id=2)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    put(directory / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names})


def _gemma(directory: Path) -> None:
    symbols = ["<start_of_turn>", "<end_of_turn>", "<unused0>", "\n\n"]
    _train(directory, pad_id=0, eos_id=1, bos_id=2, unk_id=3, add_dummy_prefix=False, user_defined_symbols=symbols)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((directory / "tokenizer.model").read_bytes())
    for number, piece in ((1, "<eos>"), (2, "<bos>")):
        proto.pieces[number].piece = piece
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())
    put(directory / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, **names})


def _byte_level(split: str | None, tokenizer_class: str, *, ignore_merges: bool = False) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
        steps = [step] if split is None else [pre_tokenizers.Split(Regex(split), "isolated"), step]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else step
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator(TEXT * 20, trainer)
        tokenizer.add_special_tokens(["<|endoftext|>"])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(directory)
        config = json.loads((directory / "tokenizer_config.json").read_text())
        put(directory / "tokenizer_config.json", config | {"tokenizer_class": tokenizer_class})

    return build


def _bert(directory: Path) -> None:
    save_wordpiece(directory)


def _t5(directory: Path) -> None:
    train_unigram(directory, "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    put(directory / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 3, **names})


def _xlmr(directory: Path) -> None:
    save_xlmr_tokenizer(directory)


FAMILIES = {
    "llama-spm": Family(_llama, "llama", "LlamaTokenizer"),
    "mistral-spm": Family(_llama, "mistral", "LlamaTokenizerFast"),
    "phi3-spm": Family(_llama, "phi3", "LlamaTokenizerFast"),
    "gemma": Family(_gemma, "gemma3", "GemmaTokenizer", ("<start_of_turn>", "<end_of_turn>", "<x>"), template=GEMMA),
    "llama3-bpe": Family(_byte_level(LLAMA3_SPLIT, "PreTrainedTokenizerFast", ignore_merges=True), "llama",
                         "PreTrainedTokenizerFast"),
    "qwen2-bpe": Family(_byte_level(QWEN2_SPLIT, "Qwen2Tokenizer"), "qwen2", "Qwen2Tokenizer"),
    "gpt2-bpe": Family(_byte_level(None, "GPT2Tokenizer"), "gpt2", "GPT2Tokenizer"),
    "bert-wordpiece": Family(_bert, "bert", "BertTokenizer", template=None),
    "t5-unigram": Family(_t5, "t5", "T5Tokenizer", template=None),
    "xlm-roberta": Family(_xlmr, "xlm-roberta", "XLMRobertaTokenizer", template=None),
}  # fmt: skip


def save_forms(family: Family, root: Path, *, more: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """The same tokenizer as transformers 4 saved it and as transformers 5 saves it.

    Args:
        family: Which.
        root: Empty directory.
        more: User-defined tokens that a checkpoint's training added.
    """
    built, older, newer = root / "built", root / "older", root / "newer"
    built.mkdir(parents=True)
    family.build(built)
    tokenizer = AutoTokenizer.from_pretrained(built)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in family.control], True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*family.user_defined, *more)])
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(newer)
    shutil.copytree(newer, older)
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (built / name).is_file():
            shutil.copy(built / name, older)
    _write_older_files(family, older, built)
    shutil.rmtree(built)
    return older, newer


def _write_older_files(family: Family, older: Path, built: Path) -> None:
    description = json.loads((older / "tokenizer.json").read_text())
    config = json.loads((older / "tokenizer_config.json").read_text())
    first = json.loads((built / "tokenizer_config.json").read_text())
    names = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    added = description["added_tokens"]
    flags = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added}
    rest = {key: first[key] for key in ("add_bos_token", "do_lower_case", "extra_ids") if key in first}
    put(
        older / "tokenizer_config.json",
        {**rest, **names, "added_tokens_decoder": flags, "tokenizer_class": family.older_class,
         "additional_special_tokens": list(family.control), "clean_up_tokenization_spaces": False},
    )  # fmt: skip
    put(older / "special_tokens_map.json", {**names, "additional_special_tokens": list(family.control)})
    vocabulary = description["model"]["vocab"]
    beyond = {token["content"]: token["id"] for token in added if token["id"] >= len(vocabulary)}
    if beyond:
        put(older / "added_tokens.json", beyond)
    if description["model"]["type"] == "WordPiece":
        (older / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
