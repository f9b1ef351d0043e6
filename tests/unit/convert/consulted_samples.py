"""Small models of the classes for which upstream opens more than config, weights and one tokenizer file."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.unit.convert.convert_samples import ARCHITECTURES, SPM_TOKENS, save_model, save_tokenizer

TEXT = ["The packaging service turns finished training runs into files.", "A checkpoint holds an adapter 0123456789."]
_SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 130,
}  # fmt: skip
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def put(path: Path, content: Any) -> None:
    """Write JSON, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_pooling(directory: Path, mode: str = "mean_tokens", *dense: str) -> None:
    """What sentence-transformers writes beside a model: modules.json, pooling, dense layers."""
    modules = MODULES + [
        {"idx": 2 + number, "name": path, "path": path, "type": "sentence_transformers.models.Dense"}
        for number, path in enumerate(dense)
    ]
    put(directory / "modules.json", modules)
    put(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, f"pooling_mode_{mode}": True})
    sizes = [32, *([48] * (len(dense) - 1)), 32] if len(dense) > 1 else [32, 16]
    for path, before, after in zip(dense, sizes, sizes[1:], strict=False):
        put(directory / path / "config.json", {"in_features": before, "out_features": after, "bias": False})
        save_file({"linear.weight": torch.randn(after, before)}, directory / path / "model.safetensors")


def save_wordpiece(directory: Path) -> int:
    """A WordPiece tokenizer as BERT has it; returns its number of tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXT * 20, trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials))
    ids = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
    config = {f"{kind}_token": text for kind, text in names.items()}
    put(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **config})
    return tokenizer.get_vocab_size()


def train_unigram(directory: Path, name: str, **settings: Any) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece unigram model in ``directory / name``."""
    (directory / "corpus").write_text("\n".join(TEXT * 40))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus"), model_prefix=str(directory / "sp"), model_type="unigram", vocab_size=120,
        hard_vocab_limit=False, minloglevel=2, **settings,
    )  # fmt: skip
    (directory / "corpus").unlink()
    (directory / "sp.vocab").unlink()
    (directory / "sp.model").rename(directory / name)
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / name))


def save_xlmr_tokenizer(directory: Path) -> int:
    """XLM-RoBERTa's: sentencepiece.bpe.model, and tokenizer.json whose ids are shifted by one."""
    from sentencepiece import sentencepiece_model_pb2

    pieces = train_unigram(directory, "sentencepiece.bpe.model")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((directory / "sentencepiece.bpe.model").read_bytes())
    vocabulary = [[token, 0.0] for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [[pieces.IdToPiece(index), pieces.GetScore(index)] for index in range(3, pieces.GetPieceSize())]
    vocabulary.append(["<mask>", 0.0])
    special = [0, 1, 2, 3, len(vocabulary) - 1]
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    ends = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (("<s>", 0), ("</s>", 2))}
    around = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ends]
    put(
        directory / "tokenizer.json",
        {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [
                {"id": index, "content": vocabulary[index][0], "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}
                for index in special
            ],
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
            "pre_tokenizer": metaspace, "decoder": metaspace,
            "post_processor": {
                "type": "TemplateProcessing", "single": [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": ends,
            },
            "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
        },
    )  # fmt: skip
    names = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
    config = {f"{kind}_token": text for kind, text in names.items()}
    put(directory / "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer", **config})
    return len(vocabulary)


def save_encoder(
    directory: Path, config_class: str, tokens: int, model_class: str = "AutoModel", **settings: Any
) -> None:
    """A model of random weights for a vocabulary of ``tokens``."""
    torch.manual_seed(4)
    config = getattr(transformers, config_class)(**{**_SMALL, "vocab_size": tokens, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.AutoModel.from_config(config).save_pretrained(directory)


def bert(directory: Path, *pooling: str) -> None:
    """WordPiece; with ``pooling``, modules.json."""
    save_encoder(directory, "BertConfig", save_wordpiece(directory))
    if pooling:
        save_pooling(directory, *pooling)


def xlm_roberta(directory: Path, *, with_sentencepiece: bool = True) -> None:
    """A model of sentence-transformers with the pooling of bge-m3."""
    tokens = save_xlmr_tokenizer(directory)
    if not with_sentencepiece:
        (directory / "sentencepiece.bpe.model").unlink()
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    save_encoder(directory, "XLMRobertaConfig", tokens, type_vocab_size=1, **ids)
    save_pooling(directory, "cls_token")


def embedding_gemma(directory: Path) -> None:
    """Two dense layers after the pooling, which upstream leaves out unless it is told."""
    torch.manual_seed(4)
    config = transformers.Gemma3TextConfig(**ARCHITECTURES["gemma3"][1], use_bidirectional_attention=True)
    transformers.Gemma3TextModel(config).save_pretrained(directory)
    save_tokenizer(directory, SPM_TOKENS)
    save_pooling(directory, "mean_tokens", "2_Dense", "3_Dense")


def lfm2_colbert(directory: Path) -> None:
    """A dense layer that upstream reads, with no modules.json."""
    torch.manual_seed(4)
    config = transformers.Lfm2Config(
        **{**ARCHITECTURES["llama"][1], "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2}
    )
    transformers.Lfm2Model(config).save_pretrained(directory)
    save_tokenizer(directory, SPM_TOKENS)
    save_pooling(directory, "mean_tokens", "1_Dense")


def qwen3_reranker(directory: Path) -> None:
    """A Qwen3 whose card is headed by the reranker's name."""
    save_model("qwen3", directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# Qwen3-Reranker-0.6B\n\nRanks.\n")


def t5(directory: Path, name: str = "spiece.model") -> None:
    """An encoder and decoder with a unigram tokenizer under either of its names."""
    pieces = train_unigram(directory, name, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    put(directory / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "extra_ids": 0})
    torch.manual_seed(4)
    config = transformers.T5Config(
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        vocab_size=pieces.GetPieceSize(),
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(directory)


def modern_bert(directory: Path) -> None:
    """BPE, and keys that the class writes itself."""
    save_tokenizer(directory, 49152)
    ids: dict[str, Any] = {
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    save_encoder(directory, "ModernBertConfig", 49152, **ids)
    save_pooling(directory, "lasttoken")


SAMPLES: dict[str, Callable[[Path], None]] = {
    "bert": bert,
    "bert-mean": lambda directory: bert(directory, "mean_tokens"),
    "bert-cls": lambda directory: bert(directory, "cls_token"),
    "xlm-roberta": xlm_roberta,
    "xlm-roberta-json": lambda directory: xlm_roberta(directory, with_sentencepiece=False),
    "embedding-gemma": embedding_gemma,
    "lfm2-colbert": lfm2_colbert,
    "qwen3-reranker": qwen3_reranker,
    "t5": t5,
    "t5-tokenizer.model": lambda directory: t5(directory, "tokenizer.model"),
    "modern-bert": modern_bert,
}
