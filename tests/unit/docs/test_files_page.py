"""The examples of the pages about files are files that are taken."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from api_client.console.settings import Token
from api_client.contract.task import TrainingTask

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = pytest.mark.parametrize("page", ["files.md", "files.zh-CN.md"])


def example(page: str, language: str) -> str:
    [shown] = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)
    return str(shown)


@PAGES
def test_the_task_is_one(page: str) -> None:
    TrainingTask.model_validate(json.loads(example(page, "json"))).require_packageable()


@PAGES
def test_the_tokens_are_some(page: str) -> None:
    [token] = tomllib.loads(example(page, "toml"))["tokens"]
    assert Token.model_validate(token).role.value == "submit"
