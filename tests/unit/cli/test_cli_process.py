"""The command line as a process: module entry, missing parts, shell completion, odd encodings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULE = (sys.executable, "-m", "api_client.cli")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=60, check=False
    )


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a Python that does not have a module."""
    code = f"import sys; sys.modules[{module!r}] = None; from api_client.cli import run; sys.exit(run(sys.argv[1:]))"
    return run(sys.executable, "-c", code, *arguments)


def test_the_module_runs_and_an_unreachable_service_is_exit_code_3() -> None:
    done = run(*MODULE, "list", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "redis_unreachable"
    assert done.stderr == ""


def test_without_the_worker_its_commands_say_what_to_install() -> None:
    done = without("worker", "package", "--base", "x", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "dependency_missing"
    assert "pip install 'trainpack[worker,embedded]'" in error["remedy"]
    listed = without("worker", "--help").stdout
    assert "needs trainpack[worker]" in " ".join(listed.replace("│", " ").split())
    assert without("worker", "templates").returncode == 0


@pytest.mark.parametrize(("module", "command"), [("pydantic_settings", "up"), ("pydantic_settings", "worker")])
def test_without_an_extra_a_command_names_module_and_extra(module: str, command: str) -> None:
    done = without(module, command, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["fields"]["module"] == module
    assert "worker" in error["fields"]["extra"]


def test_without_boto3_an_s3_run_names_the_extra() -> None:
    done = without("boto3", "checkpoints", "s3://bucket/run", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "dependency_missing"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("trainpack sub", ["submit"]),
        ("trainpack submit -t me", ["merge_quantize", "merge"]),
        ("trainpack submit -q Q8", ["Q8_0"]),
        ("trainpack list --state r", ["running"]),
        ("trainpack status 2025", []),
    ],
)
def test_the_shell_completes_commands_and_values(words: str, offered: list[str]) -> None:
    count = str(len(words.split()) - 1)
    done = run(*MODULE, _TRAINPACK_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, offered, "")


def test_output_survives_an_encoding_without_chinese_or_lines() -> None:
    done = run(*MODULE, "templates", "--json", PYTHONIOENCODING="ascii", LANG="zh_CN.UTF-8")
    assert done.returncode == 0
    assert json.loads(done.stdout)["templates"][0]["title_zh"] == "合并并量化"
    assert done.stdout.isascii()
    text = run(*MODULE, "templates", PYTHONIOENCODING="ascii", LANG="zh_CN.UTF-8")
    assert text.returncode == 0
    assert text.stdout.isascii()


def test_a_path_that_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff")
    done = run(*MODULE, "checkpoints", path, "--json")
    assert done.returncode == 2
    assert "\\xff" in done.stdout or "\\udcff" in done.stdout
    json.loads(done.stdout)


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = (
        "import sys; from api_client.cli.app import build_app; build_app();"
        "sys.exit(repr({'torch', 'numpy', 'transformers', 'boto3', 'celery', 'config', 'peft'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", code).stderr.strip() == "set()"


def test_ctrl_c_while_the_commands_load_ends_without_a_traceback(tmp_path: Path) -> None:
    """The interrupt comes in the middle of the imports: the first module that ``run`` asks for raises it."""
    code = (
        "import sys, importlib.abc\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'api_client.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from api_client.cli import main; main()"
    )
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_nothing_heavy_is_loaded_before_main_can_catch_ctrl_c() -> None:
    code = (
        "import sys; import api_client.cli; sys.exit(repr({'typer', 'rich', 'pydantic', 'redis'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", code).stderr.strip() == "set()"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line run by a shell, for its redirections; ``$CLI`` is the program."""
    return run("bash", "-c", line, CLI=" ".join(MODULE), **environment)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_the_caller_closed_takes_nothing_away_from_the_rest(redirection: str) -> None:
    done = shell(f"$CLI templates {redirection}; echo code $?; $CLI status x --json {redirection}; echo code $?")
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 0", "code 3"]


def test_an_error_that_standard_output_cannot_take_is_told_on_standard_error() -> None:
    done = shell("$CLI list --json >/dev/full; echo code $?")
    assert done.stdout == "code 3\n"
    assert "redis_unreachable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_width_of_zero_is_none() -> None:
    assert run(*MODULE, "templates", COLUMNS="0").stdout == run(*MODULE, "templates").stdout != ""


@pytest.mark.parametrize(("place", "command"), [("config.py", "doctor"), ("worker.py", "doctor")])
def test_a_module_of_someone_else_that_hides_ours_is_named(tmp_path: Path, place: str, command: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("SETTING = 1\n")
    code = ("-P", "-c", "from api_client.cli import main; main()")
    done = run(sys.executable, *code, command, "--json", PYTHONPATH=str(tmp_path))
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "dependency_missing"
    assert f"{tmp_path / place} hides trainpack's own module" in error["message"]
    assert "PYTHONPATH" in error["remedy"]
