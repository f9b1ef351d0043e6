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


def test_the_module_runs_and_an_unreachable_service_is_exit_code_3():
    done = run(*MODULE, "list", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "redis_unreachable"
    assert done.stderr == ""


def test_without_the_worker_its_commands_say_what_to_install():
    done = without("worker", "package", "--base", "x", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "dependency_missing"
    assert "pip install 'trainpack[worker,embedded]'" in error["remedy"]
    listed = without("worker", "--help").stdout
    assert "needs trainpack[worker]" in " ".join(listed.replace("│", " ").split())
    assert without("worker", "templates").returncode == 0


@pytest.mark.parametrize(("module", "command"), [("pydantic_settings", "up"), ("pydantic_settings", "worker")])
def test_without_an_extra_a_command_names_module_and_extra(module, command):
    done = without(module, command, "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["fields"]["module"] == module
    assert "worker" in error["fields"]["extra"]


def test_without_boto3_an_s3_run_names_the_extra():
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
def test_the_shell_completes_commands_and_values(words, offered):
    count = str(len(words.split()) - 1)
    done = run(*MODULE, _TRAINPACK_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, offered, "")


def test_output_survives_an_encoding_without_chinese_or_lines():
    done = run(*MODULE, "templates", "--json", PYTHONIOENCODING="ascii", LANG="zh_CN.UTF-8")
    assert done.returncode == 0
    assert json.loads(done.stdout)["templates"][0]["title_zh"] == "合并并量化"
    assert done.stdout.isascii()
    text = run(*MODULE, "templates", PYTHONIOENCODING="ascii", LANG="zh_CN.UTF-8")
    assert text.returncode == 0
    assert text.stdout.isascii()


def test_a_path_that_is_not_utf_8_is_shown_escaped(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff")
    done = run(*MODULE, "checkpoints", path, "--json")
    assert done.returncode == 2
    assert "\\xff" in done.stdout or "\\udcff" in done.stdout
    json.loads(done.stdout)


def test_the_command_line_starts_without_anything_heavy():
    code = (
        "import sys; from api_client.cli.app import build_app; build_app();"
        "sys.exit(repr({'torch', 'numpy', 'transformers', 'boto3', 'celery', 'config', 'peft'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", code).stderr.strip() == "set()"
