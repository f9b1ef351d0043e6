"""Following many jobs, completing their names, and a table that fits the terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.integration.cli.conftest import CommandLine
from tests.integration.harness import ROOT, Installation

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Held:
    """Two running jobs with a label of their own."""

    installed: Installation
    ids: tuple[str, ...]
    outputs: tuple[str, ...]
    group: str

    def let_go(self) -> None:
        for output in self.outputs:
            self.installed.let_go("merge", output)


@pytest.fixture
def held(trainpack: CommandLine, installed: Installation) -> Iterator[Held]:
    group = uuid.uuid4().hex[:6]
    outputs = (f"{group}-0", f"{group}-1")
    ids = tuple(trainpack.submit(output, "--label", f"group={group}", merge="hold") for output in outputs)
    for output in outputs:
        installed.held("merge", output=output)
    found = Held(installed, ids, outputs, group)
    yield found
    found.let_go()
    for job_id in ids:
        installed.client.wait(job_id, 25)


def test_watch_by_state_and_label_follows_them_until_all_have_ended(
    trainpack: CommandLine, installed: Installation, held: Held
) -> None:
    trainpack.submit("other", merge="permanent")
    terminal = trainpack.terminal("watch", "--state", "running", "--label", f"group={held.group}")
    for job_id in held.ids:
        terminal.until(job_id)
    held.let_go()
    assert terminal.end() == 0
    assert "base_model_invalid" not in terminal.seen.decode()


def test_ctrl_c_in_a_watch_of_many_leaves_all_running(
    trainpack: CommandLine, installed: Installation, held: Held
) -> None:
    terminal = trainpack.terminal("watch", *held.ids)
    terminal.until(held.ids[1])
    terminal.press(b"\x03")
    assert terminal.end() == 130
    text = terminal.until("The jobs go on without this window.")
    assert f"trainpack watch {' '.join(held.ids)}" in text
    assert "trainpack cancel JOB" in text
    assert {installed.client.get(job_id).state.value for job_id in held.ids} == {"running"}


def test_jobs_and_filters_together_are_refused(trainpack: CommandLine) -> None:
    ran = trainpack("watch", "20260101-000000-aaaaaa", "--state", "running", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, "request_invalid")
    ran = trainpack("watch", "--state", "runing", "--json")
    assert "did you mean running" in ran.document["error"]["message"]


def test_nothing_to_watch_is_no_error(trainpack: CommandLine) -> None:
    ran = trainpack("watch", "--label", "group=nobody")
    assert (ran.code, ran.out) == (0, "")
    assert "no job is queued or running" in ran.err
    ran = trainpack("watch", "--state", "failed", "--label", "group=nobody")
    assert (ran.code, ran.out, ran.err) == (0, "", "no jobs\n")


def test_a_callback_address_reaches_the_request(trainpack: CommandLine, installed: Installation) -> None:
    ran = trainpack("submit", "--base", "hf://a/b", "-t", "quantize_base", "-o", "/nowhere", "--callback-url", "x")
    assert ran.code == 2
    assert "--callback-url" in ran.err
    url = "https://example.com/done"
    ran = trainpack(
        "submit", "-b", "hf://a/b", "-t", "quantize_base", "-o", "/nowhere", "--callback-url", url, "--json"
    )
    # This installation's worker has no secret, and says so before anything is stored.
    assert (ran.code, ran.document["error"]["code"]) == (2, "callbacks_off")


def test_the_list_fits_and_keeps_ids_whole(trainpack: CommandLine, held: Held) -> None:
    for width, language in ((80, "C.UTF-8"), (120, "C.UTF-8"), (200, "C.UTF-8"), (80, "zh_CN.UTF-8")):
        listed = trainpack("list", COLUMNS=str(width), LANG=language).out
        lines = listed.splitlines()
        assert max(cell_len(line) for line in lines) <= width
        assert all(any(line.startswith(job_id) for line in lines) for job_id in held.ids)
        # The labels come with the room for them; state and stage are always there.
        assert ("merge=hold" in listed) == (width == 200)
        assert re.search(r"running .* merge|运行中 .* 合并 LoRA", listed)


def test_bash_completes_in_a_real_shell(trainpack: CommandLine, held: Held, tmp_path: Path) -> None:
    """The script that --show-completion prints, in a real bash: commands, options, states, ids of jobs."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    program = tmp_path / "trainpack"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m api_client.cli "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(trainpack --show-completion bash)"
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _trainpack_completion trainpack
  echo "${COMPREPLY[@]}"
}
ask trainpack wat
ask trainpack list --sta
ask trainpack watch --state ru
ask trainpack watch "$1"
"""
    done = subprocess.run(
        ["bash", "-c", script, "bash", held.ids[0][:18]],
        capture_output=True,
        text=True,
        env=trainpack.environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    commands, options, states, ids = (line.split() for line in done.stdout.splitlines())
    assert commands == ["watch"]
    assert options == ["--state"]
    assert states == ["running"]
    assert held.ids[0] in ids
