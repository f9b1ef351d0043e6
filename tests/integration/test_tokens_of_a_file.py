"""What a tokenizer says of its tokens, through the real service: in the file, or the job ends with the fact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer

from tests.integration.harness import Installation
from tests.tiny import VOCABULARY, tiny_base
from worker.models.gguf.reader import open_gguf

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType
ADDED = {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "zebra": USER_DEFINED}
PLAIN = {"template": "quantize_base", "checkpoint": None, "quant_types": ["Q8_0"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer transformers 5 saved, with two control tokens more and a word; tokenizer.json alone."""
    directory = tiny_base(tmp_path_factory.mktemp("model") / "base", vocab_size=VOCABULARY + len(ADDED))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text, kind in ADDED.items():
        tokenizer.add_tokens([AddedToken(text, special=kind == CONTROL, normalized=False)], kind == CONTROL)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    (directory / "tokenizer.model").unlink()
    return directory


def test_kinds_scores_and_chat_survive_where_only_tokenizer_json_is_left(real: Installation, base: Path) -> None:
    job = real.wait(real.submit("tokens", base_model=str(base), **PLAIN), 240)
    assert job.error is None
    with open_gguf(real.path("base-Q8_0.gguf", "tokens")) as file:
        metadata = {key: value.value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert {token: kinds[tokens.index(token)] for token in ADDED} == ADDED
    assert len(set(metadata["tokenizer.ggml.scores"])) > 100


def test_spaces_that_llama_cpp_reads_are_told_and_no_reason_to_refuse(
    real: Installation, base: Path, tmp_path: Path
) -> None:
    """In the older form upstream has llama.cpp put a space after every control token; this tokenizer puts none."""
    description = json.loads((base / "tokenizer.json").read_text())
    config = json.loads((base / "tokenizer_config.json").read_text())
    decoder = {
        str(token["id"]): {key: token[key] for key in token if key != "id"} for token in description["added_tokens"]
    }
    older = tiny_base(tmp_path / "base", vocab_size=VOCABULARY + len(ADDED))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (older / name).write_bytes((base / name).read_bytes())
    (older / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": decoder}))
    job = real.wait(real.submit("older", base_model=str(older), **PLAIN), 240)
    assert job.error is None
    told = [event for event in real.client.events(job.id) if "reads a space after control tokens" in event.message]
    assert [event.level for event in told] == ["warning"] * 2
    assert real.path("base-Q8_0.gguf", "older").exists()
