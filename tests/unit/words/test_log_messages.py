"""Messages of a log in Chinese: every sentence that the stages and the scripts write is known, and only those are."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client.words.language import Language
from api_client.words.log_messages import MESSAGES_ZH, log_message

ROOT = Path(__file__).parents[3]
PLACES = ("stages", "storage", "models")
NOT_A_JOBS = {
    "kernel cannot be compiled here, using the reference",
    "GPU failed, quantizing on the processor alone",
    "no GPU for quantization, using the processor",
    "kernel does not run on the GPU, using the processor",
}
"""Of the worker's own log."""


def template(node: ast.expr) -> str | None:
    """A literal with its values as numbered parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    numbers = iter(range(10))
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else f"{{{next(numbers)}}}" for part in node.values
    )


def written_by_stages() -> Iterator[str]:
    for place in PLACES:
        for path in (ROOT / "worker" / place).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    text = template(node.args[0]) if node.func.attr in ("log", "warning") else None
                    if text:
                        yield text


def written_by_scripts() -> Iterator[str]:
    for place in ("api_client/ledger/lua", "worker/service/state/lua"):
        for path in (ROOT / place).glob("*.lua"):
            text = path.read_text()
            yield from re.findall(r"message = '([^']+)'[,}]", text)
            yield from re.findall(r"finish\([^)]*'([A-Z][^']+)'\)", text)


def test_every_sentence_of_a_log_has_its_chinese() -> None:
    sentences = {*written_by_stages(), *written_by_scripts()} - NOT_A_JOBS
    assert len(sentences) > 45
    # a part at the end that is often empty may be a row of its own without it
    assert {
        text for text in sentences if text not in MESSAGES_ZH and re.sub(r"\{\d\}$", "", text) not in MESSAGES_ZH
    } == set()


def test_both_have_the_same_parts() -> None:
    for english, chinese in MESSAGES_ZH.items():
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", chinese)), english


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("Job submitted", "作业已提交"),
        ("Attempt 3 started", "第 3 次尝试开始"),
        ("m-Q4_K_M.gguf: 4.89 bits per weight", "m-Q4_K_M.gguf：每权重 4.89 位"),
        ("Attempt retried, next in 0.1 s: no answer {0}\nat all", "本次尝试失败，0.1 秒后重试：no answer {0}\nat all"),
        ("checkpoint-9: 272 tensors, 1,234 parameters", "checkpoint-9：272 个张量，1,234 个参数"),
        ("Checkpoint best of /runs/42 is checkpoint-9", "/runs/42 的检查点 best 即 checkpoint-9"),
        ("a program's own words", "a program's own words"),
    ],
)
def test_a_message_is_told_in_chinese_and_english_stays(english: str, chinese: str) -> None:
    assert log_message(Language.ZH, english) == chinese
    assert log_message(Language.EN, english) == english


def test_a_hostile_message_takes_no_time() -> None:
    started = time.monotonic()
    for message in ("loads and " * 390, ": , : , " * 480, "x" * 10**6, "{0}" * 1000):
        assert log_message(Language.ZH, message)
    assert time.monotonic() - started < 5
