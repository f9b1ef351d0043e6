"""Classification heads in llama.cpp score as the model does in transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from api_client.contract.errors import ErrorCode, PackagingError
from tests.field.architectures import save_small
from tests.field.vocabularies import FAMILIES
from worker.models.convert.pipeline import convert
from worker.models.gguf.reader import open_gguf
from worker.models.verify.ask import OTHER_TEXT, Question
from worker.models.verify.purpose import Purpose

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open
BERT, XLMR = "BertForSequenceClassification", "XLMRobertaForSequenceClassification"


def _model(architecture: str, directory: Path, labels: int) -> Any:
    family = {BERT: "bert", XLMR: "xlm-roberta"}[architecture]
    model = getattr(transformers, architecture)
    base = save_small(architecture, directory / "sizes", family)
    config = model.config_class.from_pretrained(base)
    config.num_labels, config.architectures = labels, [architecture]
    torch.manual_seed(6)
    made = model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    made.save_pretrained(directory / "base")
    FAMILIES[family](directory / "base")
    return made


def test_a_reranker_of_bert_scores_as_in_transformers(tmp_path: Path) -> None:
    """BERT's pooler belongs to its head: without it the file ranks by something else."""
    model = _model(BERT, tmp_path, 1)
    convert(tmp_path / "base", tmp_path / "base.gguf", gguf_dtype="f32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    texts = ["Hello", OTHER_TEXT]
    asked = Question(str(tmp_path / "base.gguf"), prompt="Hello", purpose=Purpose.RANK, threads=1).to_json()
    command = [sys.executable, "-m", "worker.models.verify.ask"]
    answer = json.loads(subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout)
    # llama.cpp's server puts the two texts together by the special tokens alone, all of the first kind
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    cut = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with torch.inference_mode():
        for text, (found,) in zip(cut, answer["vectors"], strict=True):
            ids = torch.tensor([[start, *cut[0], end, *text, end]])
            assert found == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=2e-3)


@pytest.mark.parametrize("architecture", [BERT, XLMR])
def test_two_classes_that_were_never_named_are_two_outputs(tmp_path: Path, architecture: str) -> None:
    _model(architecture, tmp_path, 2)
    assert "id2label" not in json.loads((tmp_path / "base" / "config.json").read_text("utf-8"))
    convert(tmp_path / "base", tmp_path / "base.gguf", gguf_dtype="f32")
    with open_gguf(tmp_path / "base.gguf") as file:
        assert file.metadata["bert.classifier.output_labels"].value == ["LABEL_0", "LABEL_1"]
        assert file.by_name["cls.output.weight"].shape == (64, 2)


def test_a_head_that_llama_cpp_computes_otherwise_is_refused_by_name(tmp_path: Path) -> None:
    base = save_small("DistilBertForSequenceClassification", tmp_path / "base", "bert")
    with pytest.raises(PackagingError, match="ReLU") as caught:
        convert(base, tmp_path / "base.gguf")
    assert caught.value.code is ErrorCode.UNSUPPORTED_ARCHITECTURE
