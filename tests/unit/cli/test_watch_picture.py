"""The live picture: fits every terminal, says what matters first, cannot be steered by foreign text."""

from __future__ import annotations

from typing import Any

import pytest
from rich.cells import cell_len

from api_client import Event
from api_client.cli.render.watch import Frame, bar, watch_lines
from api_client.console.pages.job_view import stage_lines
from api_client.contract.events import EventKind
from api_client.contract.job import Job, JobState, Progress
from api_client.words.language import Language
from tests.unit.cli.cli_samples import FAILURE, HOSTILE, NOW, PROGRESS, failed_job, make_event, make_job, make_output

TAIL = tuple(make_event(f"entry {number} {HOSTILE}\nsecond line") for number in range(20))


def draw(
    *jobs: Job,
    width: int = 80,
    height: int = 24,
    tail: tuple[Event, ...] = (),
    language: Language = Language.EN,
    **more: Any,
) -> list[str]:
    frame = Frame(jobs=jobs, tail=tail, now=NOW, width=width, height=height, **more)
    lines = watch_lines(make_output(language=language), frame)
    for line in lines:
        assert line.cell_len <= width, f"{line.cell_len} cells of {width}: {line.plain!r}"
        assert "\n" not in line.plain
        assert line.plain.isprintable()
    assert len(lines) <= height
    return [line.plain for line in lines]


@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 24, 100])
@pytest.mark.parametrize("width", [1, 10, 20, 40, 80, 160, 400])
def test_no_line_is_wider_and_no_picture_higher_than_the_terminal(width: int, height: int, language: Language) -> None:
    jobs = [
        make_job(),
        make_job("prepare", progress=None),
        make_job(None),
        failed_job(),
        make_job("quantize", state=JobState.CANCELLED, labels={"a": "b"}, template="merge_quantize"),
        make_job("verify", progress=Progress(done=5, total=0, unit=HOSTILE, rate=0.0, detail=HOSTILE)),
    ]
    for job in jobs:
        draw(job, width=width, height=height, tail=TAIL, language=language, note="away")
    draw(*jobs, width=width, height=height, tail=TAIL, language=language)


def test_a_running_stage_shows_bar_amount_rate_and_time_left() -> None:
    lines = draw(make_job(), width=120)
    assert lines[0] == "20251123-120000-abc123  running  merge_quantize  1:35"
    assert lines[1].startswith("✔ prepare")
    assert "1.2 s" in lines[1]
    assert "272 tensors" in lines[1]
    assert lines[3].startswith("● convert     ━")
    assert " 60%  2.0 s left  1.2 of 2.0 GB  410.0 MB/s  blk.7.ffn_down" in lines[3]
    still_to_come = ("quantize", "verify", "evaluate", "publish")
    assert [line.split() for line in lines[4:]] == [["·", name] for name in still_to_come]


@pytest.mark.parametrize(
    ("width", "facts"),
    [
        (160, ["60%", "2.0 s left", "1.2 of 2.0 GB", "410.0 MB/s", "blk.7.ffn_down"]),
        (80, ["60%", "2.0 s left", "1.2 of 2.0 GB", "410.0 MB/s"]),
        (40, ["60%", "2.0 s left"]),
        (30, ["60%"]),
        (20, ["60%"]),
    ],
)
def test_facts_give_way_in_order_as_the_terminal_narrows(width: int, facts: list[str]) -> None:
    everything = ["60%", "2.0 s left", "1.2 of 2.0 GB", "410.0 MB/s", "blk.7.ffn_down"]
    line = next(line for line in draw(make_job(), width=width) if "convert" in line)
    assert [fact for fact in everything if fact in line] == facts
    assert ("━" in line) == (width > 20)


def test_a_low_terminal_keeps_the_stage_that_runs() -> None:
    for height in (1, 2, 3, 4):
        assert any("convert" in line and "60%" in line for line in draw(make_job(), height=height))


def test_the_newest_log_lines_fill_what_room_is_left() -> None:
    lines = draw(make_job(), width=200, height=12, tail=TAIL)
    assert [line[27:35] for line in lines[9:]] == ["entry 17", "entry 18", "entry 19"]
    assert "\\x1b[2J" in lines[-1]
    assert "second line" not in lines[-1]
    assert "GGUF conversion" in lines[-1]


def test_a_failed_stage_names_its_error_and_a_cancelled_job_says_so() -> None:
    lines = draw(failed_job(), width=100)
    assert any(line.startswith("✘ convert") and FAILURE.code.value in line for line in lines)
    asked = make_job().model_copy(update={"cancel_requested": True})
    assert "cancelling" in draw(asked)[0]
    assert "正在取消" in draw(asked, language=Language.ZH)[0]


def test_stages_are_called_in_chinese_as_on_the_pages_and_stay_in_line() -> None:
    job = make_job("quantize")
    lines = draw(job, language=Language.ZH, width=120)[1:]
    titles = [line.title for line in stage_lines(job, Language.ZH)]
    assert "量化" in titles
    assert all(line[2:].startswith(title) for line, title in zip(lines, titles, strict=True))
    ended = [line for line in lines if line.startswith("✔")]
    assert len({cell_len(line[: line.index("1.2 s")]) for line in ended}) == 1, "durations stay in one column"
    assert " 量化 " in draw(job, make_job(), language=Language.ZH)[0]


def test_many_jobs_take_a_line_each_and_those_that_do_not_fit_are_counted() -> None:
    jobs = [make_job().model_copy(update={"id": f"job-{number}"}) for number in range(6)]
    jobs[0] = make_job(None).model_copy(update={"id": "job-0"})
    lines = draw(*jobs, width=100)
    assert [line.split()[1] for line in lines] == [f"job-{number}" for number in range(6)]
    assert "succeeded" in lines[0]
    assert all("convert" in line and "60%" in line for line in lines[1:])
    low = draw(*jobs, height=4)
    assert [line.split()[1] for line in low[:3]] == ["job-1", "job-2", "job-3"], "those that run come first"
    assert low[3] == "... 3 more"


def test_a_terminal_without_line_characters_gets_plain_ones() -> None:
    lines = draw(make_job(), ascii_only=True, tail=(make_event("plain"),))
    assert all(line.isascii() for line in lines)
    assert "####" in lines[3]


@pytest.mark.parametrize(("fraction", "full"), [(-1, 0), (0, 0), (0.5, 5), (1, 10), (7, 10)])
def test_bars_stay_within_their_width(fraction: float, full: int) -> None:
    assert bar(fraction, 10).plain == "━" * full + "─" * (10 - full)


def test_a_note_about_redis_stays_visible_in_a_low_terminal() -> None:
    assert draw(make_job(), height=3, note="Redis does not answer")[-1] == "Redis does not answer"


def test_progress_that_cannot_be_shown_does_no_harm() -> None:
    for progress in (
        Progress(done=3, total=2, unit="files"),
        Progress(done=0, total=0, unit=""),
        PROGRESS.model_copy(update={"rate": None}),
    ):
        draw(make_job(progress=progress), tail=(make_event(kind=EventKind.PROGRESS, fields={"done": "x"}),))
