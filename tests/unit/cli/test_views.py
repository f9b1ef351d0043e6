"""Status, lists, logs and outputs as people see them, at three widths."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from rich.cells import cell_len

from api_client.cli.arguments import parse_stage
from api_client.cli.failures import error_text
from api_client.cli.output import Output, make_console
from api_client.cli.render.job import job_view, outputs_table, stage_table
from api_client.cli.render.lists import checkpoints_view, jobs_table, quant_types_table, service_view, templates_table
from api_client.cli.render.log import log_line
from api_client.console.pages.job_view import stage_lines
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.events import EventKind
from api_client.contract.fleet import QueueInfo, WorkerInfo
from api_client.contract.job import Attempt, JobState, StageName
from api_client.contract.quant_types import QuantType
from api_client.contract.templates import BUILTIN_TEMPLATES
from api_client.runs.checkpoints import Checkpoint, CheckpointList
from api_client.runs.kinds import CheckpointKind
from api_client.words.language import Language, language_of
from tests.unit.cli.cli_samples import (
    FAILURE,
    HOSTILE,
    NOW,
    OUTPUTS,
    START,
    failed_job,
    make_event,
    make_job,
    make_output,
    printed,
)

WIDTHS = [40, 80, 160]
WORKER = WorkerInfo(
    name="host-1",
    host="host",
    pid=1,
    version="1",
    device="cpu",
    slots=2,
    queues=("packaging.io",),
    running=("20251123-120000-abc123:convert:1",),
    draining=True,
    torch_loaded=False,
    started_at=START,
    last_heartbeat_at=START,
)
QUEUES = [QueueInfo(name="packaging.heavy", waiting=12, workers=1, due=12, oldest_s=3723)]
LISTING = CheckpointList(
    directory="/run",
    checkpoints=tuple(
        Checkpoint(
            name=f"checkpoint-{step}",
            path=f"/run/checkpoint-{step}",
            step=step,
            time=START,
            kind=CheckpointKind.INCOMPLETE if step == 300 else CheckpointKind.ADAPTER,
            size_bytes=9_000_000,
            weights_bytes=5_000_000,
            scores={"eval_loss": step / 100, "eval_f1": None},
            problem="no weights" if step == 300 else None,
        )
        for step in (100, 200, 300)
    ),
    latest="checkpoint-200",
    best="checkpoint-100",
    metric="eval_loss",
    before_early_stopping="checkpoint-100",
)


def lines_of(width: int, *renderables: Any, output: Any = None) -> list[str]:
    text = printed(output or make_output(width), *renderables)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", list(Language))
def test_no_view_is_wider_than_the_terminal(width: int, language: Language) -> None:
    output = make_output(width, language)
    hostile = make_job(labels={"k": "v" * 200}, model_name="m" * 120, output_dir="/" + "deep/" * 60)
    for job in (make_job(None), failed_job(), hostile):
        lines_of(width, *job_view(output, job, width, NOW), output=output)
    lines_of(width, jobs_table(output, [make_job(None), failed_job(), hostile], width, NOW), output=output)
    lines_of(width, templates_table(output, list(BUILTIN_TEMPLATES.values()), width), output=output)
    lines_of(width, quant_types_table(output, list(QuantType), width), output=output)
    lines_of(width, *checkpoints_view(output, LISTING, width), output=output)
    lines_of(width, *service_view(output, [WORKER], QUEUES, width, NOW), output=output)


def test_took_is_the_time_of_the_attempts_that_made_the_result() -> None:
    job = make_job(None)
    replayed = [
        stage.model_copy(
            update={
                "attempts": (
                    Attempt(number=1, worker="w", started_at=START, finished_at=START + timedelta(minutes=12)),
                    Attempt(number=2, worker="w", started_at=NOW, finished_at=NOW + timedelta(seconds=0.5)),
                )
            }
        )
        for stage in job.stages
    ]
    job = job.model_copy(update={"stages": tuple(replayed), "finished_at": NOW + timedelta(hours=1)})
    assert job.seconds(NOW) == pytest.approx(0.5 * len(job.stages))
    told = printed(make_output(160), *job_view(make_output(160), job, 160, NOW))
    assert "convert attempt 1: " in told, "attempts of stages that succeeded are shown, too"
    assert "convert attempt 2: " in told


def test_the_job_s_id_and_state_stay_in_the_narrowest_list_and_the_rest_comes_with_width() -> None:
    jobs = [make_job(labels={"run": "42"}), failed_job()]
    narrow, wide = (lines_of(width, jobs_table(make_output(width), jobs, width, NOW)) for width in (40, 160))
    assert narrow[2].split() == ["20251123-120000-abc123", "running"]
    at_60, at_120 = (lines_of(width, jobs_table(make_output(width), jobs, width, NOW)) for width in (60, 120))
    assert at_60[2].split() == ["20251123-120000-abc123", "running", "42/checkpoint-900"]
    seen = ["20251123-120000-abc123", "running", "42/checkpoint-900", "convert", "60%", "1", "min"]
    assert at_120[2].split()[: len(seen)] == seen
    assert "base" in at_120[2].split()
    assert wide[2].split() == [*seen, "Q4_K_M", "base", "1:35", "run=42", "merge_quantize", "/runs/42/package"]
    assert "disk_space_insufficient" in wide[3]


def test_what_just_fits_is_neither_folded_nor_left_out() -> None:
    jobs = [make_job()]
    needed = len("20251123-120000-abc123  running  42/checkpoint-900  convert 60%")
    assert lines_of(needed, jobs_table(make_output(needed), jobs, needed, NOW))[2:] == [
        "20251123-120000-abc123  running  42/checkpoint-900  convert 60%"
    ]
    assert lines_of(needed - 1, jobs_table(make_output(needed - 1), jobs, needed - 1, NOW))[2:] == [
        "20251123-120000-abc123  running  42/checkpoint-900"
    ]


def test_status_shows_stages_attempts_error_with_remedy_and_outputs() -> None:
    text = "\n".join(lines_of(160, *job_view(make_output(160), failed_job(), 160, NOW)))
    for fact in (
        "20251123-120000-abc123  failed  merge_quantize  1:38",
        "base model: /models/base",
        "convert attempt 1: crashed (3.0 s) host-a-1  stage_crashed: signal 11",
        "convert attempt 2: rescued host-b-7",
        f"Error disk_space_insufficient\n  {FAILURE.message}",
        f"Remedy: {FAILURE.remedy}",
    ):
        assert fact in text
    done = "\n".join(lines_of(160, *job_view(make_output(160), make_job(None), 160, NOW)))
    assert "merged_model-Q4_K_M.gguf  610.0 MB" in done
    assert "ab" * 32 in done
    assert "s3://trainpack/20251123-120000-abc123/merged_model.gguf" in done


def test_stages_are_called_in_chinese_as_on_the_pages() -> None:
    output, job = make_output(160, language=Language.ZH), make_job("quantize")
    shown = printed(output, *job_view(output, job, 160, NOW), *job_view(output, failed_job(), 160, NOW))
    for line in stage_lines(job, Language.ZH):
        assert f" {line.title} " in shown
    assert "  转换 GGUF 尝试 1: 崩溃" in shown
    assert " 量化 60%" in printed(output, jobs_table(output, [job], 160, NOW))


def test_what_a_worker_runs_is_called_as_on_the_pages() -> None:
    worker = WORKER.model_copy(update={"running": (*WORKER.running, "job-2:distil:7", "job-3")})
    output = make_output(240, language=Language.ZH)
    shown = printed(output, *service_view(output, [worker], [], 240, NOW))
    assert "20251123-120000-abc123:转换 GGUF:1, job-2:distil:7, job-3 " in shown


@pytest.mark.parametrize("name", ["export-lora", "export_lora", "导出 LoRA", "export lora", " Export LoRA "])
def test_a_stage_is_named_as_it_is_shown(name: str) -> None:
    assert parse_stage(name) is StageName.EXPORT_LORA


def test_the_marks_of_stages_are_ascii_where_the_stream_is() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output = Output(False, Language.EN, make_console(stream, 80), make_console(stream, 80))
    output.show(stage_table(output, make_job(None), 80, NOW))
    stream.flush()
    assert b"+ |prepare  |succeeded" in stream.buffer.getvalue()


def test_an_error_speaks_the_language_and_keeps_a_remedy_made_for_the_case() -> None:
    output = make_output(language=Language.ZH)
    text = error_text(output, FAILURE).plain
    assert text.startswith("错误 disk_space_insufficient\n  /out: needed 31.2 GB, free 12.0 GB\n  原因: ")
    own = PackagingError(ErrorCode.CHECKPOINT_NOT_FOUND, "m", remedy="There are: checkpoint-1.")
    assert "处理: There are: checkpoint-1." in error_text(output, own).plain


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, Language.EN),
        ({"LANG": "zh_CN.UTF-8"}, Language.ZH),
        ({"LANG": "zh_TW"}, Language.ZH),
        ({"LANG": "zh_CN", "LC_ALL": "C"}, Language.EN),
        ({"LANG": "C", "LC_MESSAGES": "zh_CN"}, Language.ZH),
        ({"LC_ALL": "", "LANG": "de_DE"}, Language.EN),
    ],
)
def test_the_locale_decides_the_language(environment: dict[str, Any], language: Language) -> None:
    assert language_of(environment) is language


def test_checkpoints_carry_their_words_and_problems() -> None:
    lines = lines_of(160, *checkpoints_view(make_output(160), LISTING, 160))
    assert lines[2].split("  ")[0] == "checkpoint-100"
    assert lines[2].endswith("best, last before early stopping")
    assert lines[3].endswith("latest")
    assert lines[4].endswith("no weights")
    assert "incomplete" in lines[4]


def test_an_empty_fleet_is_pointed_out() -> None:
    lines = lines_of(80, *service_view(make_output(80), [], QUEUES, 80, NOW))
    assert "no worker is running" in " ".join(lines)
    assert lines[-1].split() == ["packaging.heavy", "12", "1:02:03", "1"]
    busy = lines_of(160, *service_view(make_output(160), [WORKER], QUEUES, 160, NOW))
    assert "1/2" in busy[2]
    assert "draining" in busy[2]


def test_log_lines_show_progress_in_words_and_indent_what_follows_a_break() -> None:
    line = log_line(make_event("first\nsecond", EventKind.MERGE_LORA)).plain
    first, second = line.splitlines()
    assert first[9:] == "Merge LoRA        first"
    assert second == " " * 27 + "second"
    fields = {"done": 1.2e9, "total": 2e9, "unit": "bytes", "rate": 410e6}
    progress = log_line(make_event("x", EventKind.PROGRESS, fields=fields), job="20251123-120000-abc123").plain
    assert progress.endswith("convert 60%  1.2 of 2.0 GB  410.0 MB/s")
    assert "20251123-120000-abc123" in progress


def test_foreign_text_cannot_steer_the_terminal_or_the_markup() -> None:
    job = make_job(None, state=JobState.FAILED).model_copy(
        update={"error": PackagingError(ErrorCode.INTERNAL_ERROR, HOSTILE).to_dict()}
    )
    artifact = OUTPUTS[0].model_copy(update={"name": HOSTILE})
    published = make_job()
    stages = [s.model_copy(update={"artifacts": (artifact,)}) if s.name == "publish" else s for s in published.stages]
    published = published.model_copy(update={"stages": tuple(stages)})
    output = make_output(160)
    text = printed(
        output, *job_view(output, job, 160, NOW), outputs_table(output, published, 160), log_line(make_event(HOSTILE))
    )
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert text.count("\\x1b[2J\\x1b]0;title\\x07\\x202e [red]markup[/red] :boom:") == 3


def test_ages_in_a_list_are_those_of_submission() -> None:
    lines = lines_of(160, jobs_table(make_output(160), [make_job(None)], 160, START + timedelta(days=3)))
    assert " 3 d " in lines[2]
