"""What a server of a file makes of a prompt, told apart: begin tokens, templates, ends. Its answers stand here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from api_client.contract.quality import StepState
from tests.tiny import tiny_tokenizer
from worker.models.origin.prompts import CASES, Expected, check_end_token, check_template, check_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(directory)
    loaded = AutoTokenizer.from_pretrained(directory)
    loaded.chat_template = TEMPLATE
    return loaded


def prompts(tokenizer: Any, expected: Expected) -> list[dict[str, Any]]:
    """As llama.cpp answers where all is well: without the begin token in the text, with it in the ids."""
    return [
        {"text": text.removeprefix("<s>"), "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
        for _, text in expected.cases
    ]


@pytest.mark.parametrize(
    ("begun", "fact"),
    [((1, 1), "the begin token is doubled"), ((), "the begin token is missing")],
    ids=["doubled", "missing"],
)
def test_begin_token_is_held_to_the_one_of_training(tokenizer: Any, begun: tuple[int, ...], fact: str) -> None:
    expected = Expected.of(tokenizer, [])
    assert [case.name for case, _ in expected.cases] == [case.name for case in CASES if not case.tools]
    right = prompts(tokenizer, expected)
    assert check_tokenizer(tokenizer, expected, right, []).state is StepState.SAME
    wrong = [prompt | {"ids": [*begun, *prompt["ids"][1:]]} for prompt in right]
    step = check_tokenizer(tokenizer, expected, wrong, [])
    assert step.state is StepState.DIFFERS
    assert step.fact == f"a single turn: {fact}"


def test_template_is_compared_case_by_case_and_an_error_is_one(tokenizer: Any) -> None:
    expected = Expected.of(tokenizer, [])
    right = prompts(tokenizer, expected)
    assert check_template(tokenizer, expected, right).state is StepState.SAME
    other = [*right[:2], right[2] | {"text": "[user] Hello"}, *right[3:]]
    assert check_template(tokenizer, expected, other).fact.startswith("a system message: character 1 and on")
    failed: list[dict[str, Any]] = [{"error": "no system role"}, *right[1:]]
    assert "cannot render it: no system role" in check_template(tokenizer, expected, failed).fact


@pytest.mark.parametrize(
    ("metadata", "state"),
    [
        ({"eos_token_id": 2}, StepState.SAME),
        ({"eos_token_id": 5}, StepState.DIFFERS),
        ({"eot_token_id": 2}, StepState.SAME),
    ],
    ids=["declared", "another", "as end of turn"],
)
def test_end_of_an_answer_is_held_to_the_ends_of_the_file(
    tokenizer: Any, metadata: dict[str, int], state: StepState
) -> None:
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    assert check_end_token(tokenizer, keys | {"tokenizer.ggml.tokens": [f"piece {n}" for n in range(9)]}).state is state
