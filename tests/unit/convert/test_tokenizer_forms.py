"""What a tokenizer says of its tokens reaches the file, whichever release of transformers saved it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import T5Config, T5ForConditionalGeneration

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.consulted_samples import put, save_encoder
from tests.unit.convert.convert_samples import save_model, teach_pre_tokenizers, upstream_convert
from tests.unit.convert.tokenizer_families import FAMILIES, save_forms
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import plan_conversion
from worker.models.convert.sentencepiece_model import sentencepiece_model
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.gguf.reader import open_gguf

# upstream leaves files open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MORE = ("<|step|>", "yak")
COMPARED = (
    "model",
    "pre",
    "tokens",
    "scores",
    "token_type",
    "merges",
    "precompiled_charsmap",
    "remove_extra_whitespaces",
)


@pytest.fixture(autouse=True)
def _known_pre_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    teach_pre_tokenizers(monkeypatch)


def save_weights(name: str, directory: Path, tokens: int) -> None:
    """Weights and config of the architecture that reads a family's tokenizer, and no tokenizer."""
    if name == "t5":
        sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
        T5ForConditionalGeneration(T5Config(vocab_size=tokens, decoder_start_token_id=0, **sizes)).save_pretrained(
            directory
        )
    elif name in ("bert", "xlm-roberta"):
        ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} if name == "xlm-roberta" else {}
        save_encoder(directory, {"bert": "BertConfig", "xlm-roberta": "XLMRobertaConfig"}[name], tokens, **ids)
    else:
        save_model(name, directory, vocab_size=tokens)
        for file in directory.glob("tokenizer*"):
            file.unlink()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Per family: weights, the base's and a checkpoint's tokenizer in both forms."""
    made = {}

    def make(name: str) -> Any:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            base, trained = (
                save_forms(FAMILIES[name], root / "base"),
                save_forms(FAMILIES[name], root / "run", more=MORE),
            )
            description = json.loads((trained[0] / "tokenizer.json").read_text())
            tokens = max(token["id"] for token in description["added_tokens"]) + 4
            save_weights(FAMILIES[name].model, root / "weights", tokens)
            made[name] = (root / "weights", base, trained)
        return made[name]

    return make


def assemble(directory: Path, *parts: Path) -> Path:
    for part in parts:
        shutil.copytree(part, directory, dirs_exist_ok=True)
    return directory


def of_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the property is about: vocabulary, kinds, scores, merges, special ids, pre-tokenizer."""
    prefix = "tokenizer.ggml."
    kept = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    return {key: value for key, value in kept.items() if key in COMPARED or key.endswith("_token_id")}


COMBINATIONS = [
    ("older", None), ("newer", None), ("older", "older"), ("older", "newer"), ("newer", "older"), ("newer", "newer"),
]  # fmt: skip


@pytest.mark.parametrize(("base_form", "checkpoint_form"), COMBINATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_file_says_of_tokens_what_upstream_says_of_the_older_form(
    name: str, base_form: str, checkpoint_form: str, family: Callable[[str], Any], tmp_path: Path
) -> None:
    weights, base_forms, trained_forms = family(name)
    forms = {"older": 0, "newer": 1}
    base = assemble(tmp_path / "base", weights, base_forms[forms[base_form]])
    checkpoint = None
    if checkpoint_form is not None:
        checkpoint = assemble(tmp_path / "run" / "checkpoint-7", trained_forms[forms[checkpoint_form]])
    expected = (base_forms if checkpoint is None else trained_forms)[forms["older"]]
    model = assemble(tmp_path / "reference", weights, expected)
    if name == "xlm-roberta" and "older" not in (base_form, checkpoint_form):
        # its converter reads tokenizer.json where no file of sentencepiece's is in reach, and knows the mask then
        (model / "sentencepiece.bpe.model").unlink()
    reference = upstream_convert(model, tmp_path / "reference.gguf")
    tokenizer = find_tokenizer(checkpoint, base)
    _, plan = plan_conversion(open_base_model(base), tokenizer=tokenizer)
    with open_gguf(reference) as file:
        theirs = of_tokenizer({key: value.value for key, value in file.metadata.items()})
    ours = of_tokenizer(plan.metadata)
    assert set(ours) == set(theirs)
    assert {key for key, value in ours.items() if plain(value) != plain(theirs[key])} == set()


def plain(value: Any) -> Any:
    """Bytes as text, arrays as lists of numbers or texts."""
    if isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return [float(item) for item in value]
    texts = [item.decode() if isinstance(item, bytes) else item for item in value]
    return [item if isinstance(item, str) else float(item) for item in texts]


def test_sentencepiece_model_is_made_again_piece_by_piece(family: Callable[[str], Any]) -> None:
    """The one that training wrote, and the one made of tokenizer.json alone."""
    for name, file in (("llama-spm", "tokenizer.model"), ("gemma", "tokenizer.model"), ("t5-unigram", "spiece.model")):
        older = family(name)[1][0]
        made = sentencepiece_model(json.loads((older / "tokenizer.json").read_text()))
        assert made is not None
        assert made[0] == file
        (older.parent / "again.model").write_bytes(made[1])
        first = SentencePieceProcessor(model_file=str(older / file))
        again = SentencePieceProcessor(model_file=str(older.parent / "again.model"))
        pieces = range(first.GetPieceSize())
        assert again.GetPieceSize() == len(pieces)
        for number in pieces:
            assert again.IdToPiece(number) == first.IdToPiece(number)
            if not first.IsControl(number) and not first.IsUnknown(number):
                assert struct.pack("<f", again.GetScore(number)) == struct.pack("<f", first.GetScore(number))
                assert again.IsByte(number) == first.IsByte(number)
        for text in ("Hello, how are you?  Training 2026.", "你好 zebra\n\nruns", ""):
            assert again.EncodeAsIds(text) == first.EncodeAsIds(text)


@pytest.mark.parametrize("name", ["llama3-bpe", "qwen2-bpe", "gpt2-bpe", "bert-wordpiece"])
def test_no_sentencepiece_model_is_made_of_another_kind(name: str, family: Callable[[str], Any]) -> None:
    assert sentencepiece_model(json.loads((family(name)[1][1] / "tokenizer.json").read_text())) is None


def test_vocabulary_whose_scores_cannot_be_told_is_refused(family: Callable[[str], Any], tmp_path: Path) -> None:
    """Upstream gives every token -1000, and llama.cpp cuts words elsewhere."""
    weights, (_, newer), _ = family("llama-spm")
    base = assemble(tmp_path / "base", weights, newer)
    description = json.loads((base / "tokenizer.json").read_text())
    description["model"]["merges"].reverse()
    put(base / "tokenizer.json", description)
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(base))
    assert caught.value.code is ErrorCode.TOKENIZER_NOT_FOUND
    assert caught.value.fields == {"file": "tokenizer.model"}


def test_two_files_that_name_one_token_differently_are_refused(family: Callable[[str], Any], tmp_path: Path) -> None:
    weights, (older, _), _ = family("qwen2-bpe")
    base = assemble(tmp_path / "base", weights, older)
    config = json.loads((base / "tokenizer_config.json").read_text())
    token = next(key for key, value in config["added_tokens_decoder"].items() if value["content"] == "<tool>")
    config["added_tokens_decoder"][token]["content"] = "<other>"
    put(base / "tokenizer_config.json", config)
    with pytest.raises(PackagingError) as caught:
        plan_conversion(open_base_model(base))
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert caught.value.fields == {"token": token, "config": "<other>", "json": "<tool>"}


def test_form_before_the_table_of_added_tokens_is_left_as_it_is(family: Callable[[str], Any], tmp_path: Path) -> None:
    """Before transformers 4.34 no file said more than upstream reads of it."""
    weights, (older, _), _ = family("llama-spm")
    base = assemble(tmp_path / "base", weights, older)
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    put(base / "tokenizer_config.json", config)
    _, plan = plan_conversion(open_base_model(base))
    kinds = plan.metadata["tokenizer.ggml.token_type"]
    assert kinds[:3] == [2, 3, 3]  # unknown, control, control: as tokenizer.model says
    assert kinds[400:405] == [3, 3, 3, 4, 4]  # what only tokenizer.json says
