"""The examples of the page about files are files that are taken."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from api_client.console.settings import Token
from api_client.contract.task import TrainingTask

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "files.md").read_text("utf-8")


def example(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(found)


def test_the_task_is_one() -> None:
    TrainingTask.model_validate(json.loads(example("json"))).require_packageable()


def test_the_tokens_are_some() -> None:
    [token] = tomllib.loads(example("toml"))["tokens"]
    assert Token.model_validate(token).role.value == "submit"
