"""Samples that are awkward: too long, and such as the template refuses; and a run that is stopped in the middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from api_client.contract.errors import ErrorCode, PackagingError
from config.roots import Roots
from tests.tiny import TEXT, tiny_base
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.evaluate.run import Budget, Scores, evaluate_files
from worker.models.evaluate.texts import data_set, shipped_text, text_file
from worker.models.evaluate.variants import QuantizedFile
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path / "base", dtype="float32")


def chat(*contents: str, role: str = "user") -> str:
    messages = [{"role": role, "content": text} for text in contents]
    return json.dumps({"messages": [*messages, {"role": "assistant", "content": TEXT[0]}]}) + "\n"


def test_a_sample_longer_than_the_context_ends_there_and_one_that_the_template_refuses_is_counted(
    base: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    data = tmp_path / "data.jsonl"
    data.write_text(chat(TEXT[1]) + chat(*TEXT * 40) + chat(TEXT[2], role="tool") + chat(TEXT[3], role="tool"))
    text = data_set(data, tokenizer, context=64)
    assert [len(sequence.ids) for sequence in text.sequences][1] == 64
    assert (text.source.samples, text.source.shortened, text.source.left_out) == (2, 1, 2)
    assert str(text.source.left_out_reason).startswith("the chat template fails: ")
    assert "no tools here" in str(text.source.left_out_reason)


def test_where_the_template_refuses_every_sample_its_reason_is_the_error(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    data = tmp_path / "data.jsonl"
    data.write_text(chat(TEXT[2], role="tool") + chat(TEXT[3], role="tool"))
    with pytest.raises(PackagingError) as caught:
        data_set(data, tokenizer)
    assert caught.value.code is ErrorCode.CALIBRATION_TOO_SHORT
    assert "data.jsonl: no sample can be run; the chat template fails: " in caught.value.message
    assert caught.value.fields["left_out"] == 2


def without_bytes(base: Path, directory: Path) -> Any:
    """A tokenizer of the same text that has no bytes to fall back on."""
    import sentencepiece

    directory.mkdir()
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(TEXT * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(directory / "tokenizer"), model_type="bpe", vocab_size=120, unk_id=0,
        bos_id=1, eos_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    shutil.copy(base / "tokenizer_config.json", directory)
    return AutoTokenizer.from_pretrained(directory)


def test_what_the_tokenizer_cannot_hold_is_left_out_and_said(base: Path, tmp_path: Path) -> None:
    tokenizer = without_bytes(base, tmp_path / "narrow")
    data, strange = tmp_path / "data.jsonl", "语言模型的质量如何衡量"
    known = [json.dumps({"text": line}) + "\n" for line in TEXT]
    data.write_text("".join(known) + json.dumps({"text": strange}) + "\n")
    source = data_set(data, tokenizer).source
    assert (source.samples, source.left_out) == (len(TEXT), 1)
    assert str(source.left_out_reason).startswith("the tokenizer cannot hold it: ")
    shipped = shipped_text(tokenizer)
    assert shipped.source.left_out > 0
    assert "Chinese" not in {sequence.part for sequence in shipped.sequences}
    assert "chat" in {sequence.part for sequence in shipped.sequences}

    data.write_text(json.dumps({"text": strange}) + "\n")
    (tmp_path / "text.txt").write_text(strange * 200)
    for read, path in ((data_set, data), (text_file, tmp_path / "text.txt")):
        with pytest.raises(PackagingError) as caught:
            read(path, tokenizer, context=64)
        assert caught.value.code is ErrorCode.DATASET_INVALID
        assert f"{path.name}: the tokenizer cannot hold it: " in caught.value.message
        assert caught.value.failure.remedy == "Give text in a language that the model's tokenizer knows."


def test_a_stop_between_two_rounds_loses_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.models.evaluate.run.ROUND_TOKENS", 1024)
    convert(base, tmp_path / "m.gguf", gguf_dtype="f32", setting=WorkSetting(scratch_dir=tmp_path,
                                                                           roots=Roots.anywhere()))  # fmt: skip
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 120))
    text = text_file(tmp_path / "text.txt", AutoTokenizer.from_pretrained(base), context=256)
    steps: list[WorkProgress] = []

    def judge(kept: Path | None, stop_after: float | None) -> Scores:
        steps.clear()
        setting = WorkSetting(
            roots=Roots.anywhere(),
            report=steps.append,
            should_stop=lambda: stop_after is not None and bool(steps) and steps[-1].done > stop_after,
        )
        with_file = QuantizedFile("m", [tmp_path / "m.gguf"])
        return evaluate_files(
            open_base_model(base), None, [with_file], text.sequences, Budget(None, kept), setting=setting
        )

    whole = judge(None, None)
    assert whole.tokens > 2 * 1024
    with pytest.raises(StopRequested):
        judge(tmp_path / "scores.npz", 1024.0)
    again = judge(tmp_path / "scores.npz", None)
    assert min(step.done for step in steps) > 1000, "the first round was kept"
    assert again.parts == whole.parts
    assert (again.reference.log_probability == whole.reference.log_probability).all()
