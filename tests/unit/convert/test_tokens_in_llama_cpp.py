"""llama.cpp cuts a rendered chat into the tokens of transformers, or the file is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from api_client.contract.errors import ErrorCode, PackagingError
from tests.unit.convert.convert_samples import teach_pre_tokenizers
from tests.unit.convert.test_tokenizer_forms import assemble, save_weights
from tests.unit.convert.tokenizer_families import FAMILIES, save_forms
from worker.models.convert.pipeline import convert
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.verify import tokens
from worker.models.verify.ask import Question
from worker.models.verify.load import SPACES_READ, prove
from worker.models.verify.tokens import Rendered, check_tokens, rendered_chat

CHATS = [name for name, family in FAMILIES.items() if family.template is not None]
APART_BY_SPACES = {
    # upstream's file has llama.cpp put a space after every control token, and these tokenizers put none
    ("llama-spm", "older"), ("mistral-spm", "older"), ("phi3-spm", "older"), ("phi3-spm", "newer"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _known_pre_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    teach_pre_tokenizers(monkeypatch)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    made = {}

    def make(name: str, form: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            older, newer = save_forms(FAMILIES[name], root / "tokenizer")
            added = json.loads((newer / "tokenizer.json").read_text())["added_tokens"]
            save_weights(FAMILIES[name].model, root / "weights", max(token["id"] for token in added) + 4)
            made[name] = {
                "older": assemble(root / "older", root / "weights", older),
                "newer": assemble(root / "newer", root / "weights", newer),
            }
        return made[name][form]

    return make


@pytest.mark.parametrize("form", ["older", "newer"])
@pytest.mark.parametrize("name", CHATS)
def test_chat_is_read_as_training_saw_it_or_with_spaces_that_are_told(
    name: str, form: str, forms: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = forms(name, form)
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    chat = rendered_chat(find_tokenizer(None, model))
    assert chat is not None
    assert list(chat.ids) == AutoTokenizer.from_pretrained(model).encode(chat.text, add_special_tokens=False)
    question = Question(str(tmp_path / "out.gguf"), max_tokens=1, context_tokens=64)
    told = prove(question, chat)
    assert told.startswith('answers "What is the capital of France?" with')
    assert told.endswith(SPACES_READ) == ((name, form) in APART_BY_SPACES)


def test_sentencepiece_models_as_published_are_read_as_their_tokenizer_json_says(
    forms: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Llama 2, Mistral 0.1 and Phi 3 come with a normalizer that puts a space before every stretch of text."""
    model = assemble(tmp_path / "model", forms("llama-spm", "older"))
    description = json.loads((model / "tokenizer.json").read_text())
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    description["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replaced]}
    description["pre_tokenizer"] = None
    (model / "tokenizer.json").write_text(json.dumps(description))
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    chat = rendered_chat(find_tokenizer(None, model))
    told = prove(Question(str(tmp_path / "out.gguf"), max_tokens=1, context_tokens=64), chat)
    assert not told.endswith(SPACES_READ)


def test_control_token_that_arrives_as_letters_is_refused(forms: Callable[[str, str], Path], tmp_path: Path) -> None:
    """The fault that this is for: what tokenizer.json says of a token is not in the file."""
    model = forms("qwen2-bpe", "newer")
    convert(model, tmp_path / "out.gguf", gguf_dtype="f32")
    other = assemble(tmp_path / "other", model)
    description = json.loads((other / "tokenizer.json").read_text())
    description["added_tokens"] = [one for one in description["added_tokens"] if one["content"] != "<|im_end|>"]
    (other / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(PackagingError) as caught:
        prove(Question(str(tmp_path / "out.gguf"), max_tokens=1), rendered_chat(find_tokenizer(None, other)))
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
    assert caught.value.fields["read"] != caught.value.fields["trained"]


def test_first_difference_is_named() -> None:
    chat = Rendered("text", (1, 2, 3, 4))
    check_tokens("m.gguf", chat, [1, 2, 3, 4])
    for found, at, read in (([1, 2, 9, 4], 2, [9, 4]), ([1, 2], 2, []), ([1, 2, 3, 4, 5], 4, [5])):
        with pytest.raises(PackagingError) as caught:
            check_tokens("m.gguf", chat, found)
        assert (caught.value.fields["at"], caught.value.fields["read"]) == (at, read)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{% for", "{{ ''.__class__.mro() }}"]
)
def test_template_that_cannot_be_rendered_is_no_trouble(
    template: str, forms: Callable[[str, str], Path], tmp_path: Path
) -> None:
    model = assemble(tmp_path / "model", forms("qwen2-bpe", "newer"))
    (model / "chat_template.jinja").write_text(template)
    assert rendered_chat(find_tokenizer(None, model)) is None


def test_template_that_never_ends_is_refused_in_time(
    forms: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TEMPLATE_S", 0.5)
    model = assemble(tmp_path / "model", forms("qwen2-bpe", "newer"))
    row = "{% for a in range(99999) %}"
    (model / "chat_template.jinja").write_text(row * 4 + "{% endfor %}" * 4 + "x")
    with pytest.raises(PackagingError, match=r"did not render a short chat within 0\.5 s") as caught:
        rendered_chat(find_tokenizer(None, model))
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED


def test_template_that_takes_only_a_question_is_given_one(forms: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = assemble(tmp_path / "model", forms("qwen2-bpe", "newer"))
    (model / "chat_template.jinja").write_text(
        "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}"
    )
    rendered = rendered_chat(find_tokenizer(None, model))
    assert rendered is not None
    assert rendered.text == "Hello, how are you? 2026"


def test_tokenizer_that_transformers_cannot_open_is_refused(forms: Callable[[str, str], Path], tmp_path: Path) -> None:
    model = assemble(tmp_path / "model", forms("llama-spm", "newer"))
    description = json.loads((model / "tokenizer.json").read_text())
    del description["model"]["vocab"]["in"]  # merges make it
    (model / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(PackagingError) as caught:
        rendered_chat(find_tokenizer(None, model))
    assert caught.value.code is ErrorCode.TOKENIZER_UNSUPPORTED
