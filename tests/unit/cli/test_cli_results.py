"""Commands that need no service: what they print, as text and as JSON."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from api_client.cli.commands import console, submit
from api_client.console.settings import Token
from api_client.contract.quant_types import QuantType
from api_client.contract.task import TrainingTask
from api_client.contract.templates import BUILTIN_TEMPLATES
from tests.unit.cli.conftest import Ran

COMMANDS = [
    *("package", "ask", "submit", "quantize", "evaluate", "demo", "recipe"),
    *("list", "status", "watch", "logs", "wait", "outputs", "cancel", "replay"),
    *("checkpoints", "templates", "quant-types", "recommend"),
    *("up", "worker", "console", "limits", "fairness", "pause", "resume", "doctor", "clean"),
]


def test_help_lists_every_command_under_its_heading(cli: Callable[..., Ran]) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        ran = cli(*arguments)
        assert (ran.code, ran.err) == (0, "")
        listed = re.findall(r"^│ ([a-z-]+)  ", ran.out, flags=re.MULTILINE)
        assert [name for name in listed if not name.startswith("-")] == COMMANDS
        for heading in ("Package", "Jobs", "Choices", "This machine"):
            assert f" {heading} " in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(cli: Callable[..., Ran], command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
    assert "Usage: trainpack " + command in ran.out


@pytest.mark.parametrize("locale", ["C.UTF-8", "zh_CN.UTF-8"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_text_is_cut_at_80_columns(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str, locale: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LC_ALL", locale)
    ran = cli(command, "--help")
    assert "…" not in ran.out
    assert "<bool>" not in ran.out


@pytest.mark.parametrize("command", ["submit", "package"])
def test_submit_and_package_take_all_flags_of_a_request(cli: Callable[..., Ran], command: str) -> None:
    text = cli(command, "--help").out
    flags = (
        "--template --base --checkpoint --output --model-name --quant-type --gguf-dtype --imatrix --calibration --set "
        "--task --label --priority --idempotency-key --overwrite --no-upload"
    )
    for flag in flags.split():
        assert f" {flag} " in text


def test_templates_and_quant_types_are_listed_without_a_service(cli: Callable[..., Ran]) -> None:
    ran = cli("templates", "--json")
    assert ran.code == 0
    assert [one["name"] for one in ran.document["templates"]] == list(BUILTIN_TEMPLATES)
    types = cli("quant-types", "--json").document["quant_types"]
    assert [one["name"] for one in types] == [quant.value for quant in QuantType]
    assert types[0]["bits_per_weight"] == 4.89
    text = cli("quant-types", "--recommended").out
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["Q4_K_M", "Q5_K_M", "Q8_0"]
    for name in BUILTIN_TEMPLATES:
        assert name in cli("templates").out


def test_lists_speak_chinese_where_the_locale_does(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert "合并并量化" in cli("templates").out
    assert "默认推荐" in cli("quant-types").out


def test_checkpoints_are_listed_with_scores_and_words(cli: Callable[..., Ran], run_dir: Path) -> None:
    (run_dir / "checkpoint-2" / "trainer_state.json").write_text(
        '{"global_step": 2, "log_history": [{"step": 1, "eval_loss": 1.5}, {"step": 2, "eval_loss": NaN}]}'
    )
    ran = cli("checkpoints", run_dir, "--json")
    assert ran.code == 0
    assert (ran.document["latest"], ran.document["best"]) == ("checkpoint-2", "checkpoint-1")
    assert ran.document["checkpoints"][1]["scores"] == {"eval_loss": None}
    lines = cli("checkpoints", run_dir).out.splitlines()
    assert "eval_loss" in lines[0]
    assert re.search(r"checkpoint-1 .*adapter .* 1\.5 +best", lines[2])
    assert re.search(r"checkpoint-2 .* - +latest", lines[3])


def test_the_version_is_printed(cli: Callable[..., Ran]) -> None:
    ran = cli("--version")
    assert ran.code == 0
    assert re.fullmatch(r"trainpack \S+\n", ran.out)


def test_a_new_token_is_one_that_the_console_takes(cli: Callable[..., Ran]) -> None:
    [table] = tomllib.loads(cli("console", "token", "new", "--role", "submit", "--name", "ci@host").out)["tokens"]
    token = Token.model_validate(table)
    assert (token.role.value, token.name) == ("submit", "ci@host")
    made = cli("console", "token", "new", "--role", "read", "--json").document
    assert made["secret"] != table["secret"]
    assert made["name"].startswith("read-")
    refused = cli("console", "token", "new", "--role", "sumbit", "--json")
    assert refused.error["fields"]["suggestion"] == "submit"
    named = cli("console", "token", "new", "--role", "read", "--name", "two words", "--json")
    assert (named.code, named.error["fields"]["field"]) == (2, "name")
    assert "new" in cli("console", "token", "--help").out


def test_files_that_the_help_shows_are_taken() -> None:
    lines = Text.from_markup(submit.EXAMPLES).plain.splitlines()
    [task] = [line for line in lines if line.strip().startswith("{")]
    TrainingTask.model_validate(json.loads(task)).require_packageable()
    toml = Text.from_markup(console.CONSOLE_EXAMPLES).plain.partition("tokens.toml\n\n")[2]
    [table] = tomllib.loads(toml)["tokens"]
    assert Token.model_validate(table).role.value == "submit"
