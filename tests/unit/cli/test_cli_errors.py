"""Bad command lines and bad input: exit codes, one JSON document, suggestions, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode
from tests.tiny import one_value
from tests.unit.cli.conftest import Ran

BASE = ("--base", "/models/base", "--checkpoint", "/runs/1/checkpoint-9", "--output", "/tmp")
TASK = {"task_id": "t", "status": "running", "base_model": "/b", "output_dir": "/o"}

BAD_REQUESTS = [
    (("submit",), "checkpoint_required", "merge_lora"),
    (("submit", "-t", "quantize_base"), "base_model_required", "base model"),
    (("submit", "-t", "quantize_base", "-b", "/b"), "output_dir_required", "output directory"),
    (("submit", *BASE, "--template", "mege"), "redis_unreachable", "elsewhere.test:1"),
    (("submit", *BASE, "-q", "Q4_K_L"), "quant_type_unknown", "did you mean Q4_K_"),
    (("submit", *BASE, "-q", "Q8_0,Q8_0"), "quant_type_duplicate", "Q8_0"),
    (("submit", *BASE, "--set", "quantize=off"), "template_locked", "'quantize'"),
    (("submit", *BASE, "--set", "quantise=off"), "unknown_field", "did you mean 'quantize'"),
    (("submit", *BASE, "--set", "model_name=x"), "unknown_field", "flag of its own"),
    (("submit", *BASE, "--set", "imatrix_calibration=x"), "unknown_field", "flag of its own"),
    (("submit", *BASE, "--set", "quantize"), "request_invalid", "option=value"),
    (("submit", *BASE, "-t", "custom", "--set", "quantize=maybe"), "request_invalid", "on or off"),
    (("submit", *BASE, "-t", "custom", "--set", "export-lora=on"), "merge_excludes_lora_export", "exclude"),
    (("submit", *BASE, "-t", "custom", "--set", "export_gguf=0"), "quantize_needs_export", "export_gguf"),
    (("submit", *BASE, "--label", "run"), "request_invalid", "key=value"),
    (("submit", *BASE, "--priority", "11"), "request_invalid", "priority"),
    (("submit", *BASE, "--priority", "high"), "request_invalid", "--priority"),
    (("submit", *BASE, "--gguf-dtype", "f8"), "request_invalid", "gguf_dtype"),
    (("submit", *BASE, "--model-name", "../x"), "request_invalid", "model_name"),
    (("submit", *BASE, "--imatrix", "off", "-q", "IQ1_S"), "imatrix_required", "IQ1_S"),
    (("submit", *BASE, "--imatrix", "/m", "--set", "chunks=3"), "request_invalid", "chunks"),
    (("submit", *BASE, "--set", "chunks=many"), "request_invalid", "chunks"),
    (("submit", *BASE, "-t", "merge", "--calibration", "/c.txt"), "request_invalid", "imatrix"),
    (("submit", *BASE, "--base", "ftp://x"), "request_invalid", "scheme"),
    (("submit", *BASE, "--task", "/no/such.json"), "request_invalid", "/no/such.json"),
    (("submit", *BASE, "--outptu", "/x"), "unknown_field", "--output"),
    (("submit", *BASE, "stray"), "request_invalid", "stray"),
    (("submti",), "request_invalid", "submit"),
    (("list", "--state", "runing"), "request_invalid", "did you mean running"),
    (("list", "--since", "yesterday"), "request_invalid", "yesterday"),
    (("list", "--since", "999999999w"), "request_invalid", "since"),
    (("list", "--limit", "0"), "request_invalid", "limit"),
    (("replay",), "request_invalid", "name jobs, or say what they are like"),
    (("replay", "x", "--failed"), "request_invalid", "name jobs, or say what they are like"),
    (("replay", "x", "--code", "job_failed"), "request_invalid", "name jobs, or say what they are like"),
    (("cancel",), "request_invalid", "name jobs, or say what they are like"),
    (("replay", "x", "--from-stage", "convrt"), "request_invalid", "did you mean convert"),
    (("wait",), "request_invalid", "JOB"),
    (("wait", "x", "--timeout", "-1"), "request_invalid", "timeout"),
]
UNREACHABLE = [
    ("list",),
    ("status",),
    ("status", "x"),
    ("logs", "x"),
    ("watch",),
    ("watch", "x"),
    ("wait", "x"),
    ("cancel", "x"),
    ("replay", "x"),
    ("replay", "--failed"),
    ("outputs", "x"),
    ("worker",),
    ("submit", "-t", "quantize_base", "-b", "s3://bucket/base", "-o", "s3://bucket/out"),
]


@pytest.mark.parametrize(("arguments", "code", "fact"), BAD_REQUESTS, ids=lambda value: str(value)[:60])
def test_a_bad_request_is_refused_with_code_and_fact(
    cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: ErrorCode, fact: str
) -> None:
    # a service elsewhere: what is not visible here may be there
    monkeypatch.setenv("TRAINPACK_REDIS_URL", "redis://elsewhere.test:1")
    ran = cli(*arguments, "--json")
    assert ran.error["code"] == code
    assert fact in ran.error["message"]
    assert ran.code == (3 if code == "redis_unreachable" else 2)


def test_without_json_the_same_error_goes_to_standard_error_with_cause_and_remedy(cli: Callable[..., Ran]) -> None:
    ran = cli("submit", *BASE, "--set", "quantise=off")
    assert (ran.code, ran.out) == (2, "")
    assert "Error unknown_field" in ran.err
    assert "did you mean 'quantize'" in ran.err
    assert "Cause: " in ran.err
    assert "Remedy: Known names: merge_lora, export_gguf, quantize, export_lora" in ran.err


@pytest.mark.parametrize("arguments", UNREACHABLE, ids=" ".join)
def test_a_redis_that_does_not_answer_is_exit_code_3_and_keeps_its_password(
    cli: Callable[..., Ran], arguments: tuple[str, ...]
) -> None:
    ran = cli(*arguments, "--json")
    assert ran.code == 3
    assert ran.error["code"] == "redis_unreachable"
    assert "127.0.0.1:1" in ran.error["message"]
    text = cli(*arguments)
    assert text.code == 3
    assert "trainpack up" in text.err
    assert "secret" not in ran.out + text.err


def test_a_running_task_is_refused_and_a_damaged_one_named(cli: Callable[..., Ran], tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(TASK))
    ran = cli("submit", "--task", path, "-c", "latest", "--json")
    assert (ran.code, ran.error["code"]) == (2, "task_not_packageable")
    for text, fact in (("{", "not JSON"), ("[]", "no JSON object"), ('{"status": "completed"}', "task.task_id")):
        path.write_text(text)
        ran = cli("submit", "--task", path, "-c", "latest", "--json")
        assert (ran.code, ran.error["code"]) == (2, "request_invalid")
        assert fact in ran.error["message"]
    path.write_bytes(b"\xff\xfe")
    assert cli("submit", "--task", path, "--json").error["code"] == "request_invalid"


def test_paths_that_are_missing_here_are_refused_before_anything_is_queued(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    cases = [
        (("-b", tmp_path / "gone", "-c", run_dir / "latest", "-o", out), "base_model_not_found", "gone"),
        (("-b", base, "-c", run_dir / "checkpoint-3", "-o", out), "checkpoint_not_found", "did you mean checkpoint-2"),
        (("-b", base, "-c", run_dir, "-o", out), "checkpoint_not_found", "is a run"),
        (("-b", base, "-c", tmp_path / "gone/latest", "-o", out), "checkpoints_empty", "does not exist"),
        (("-b", base, "-c", run_dir / "best", "-o", out), "checkpoint_not_found", "no best"),
        (("-b", base, "-c", "latest", "-o", out), "checkpoints_empty", "looked up in the output directory"),
        (("-t", "quantize_base", "-b", base, "-c", run_dir / "latest", "-o", out), "checkpoint_is_adapter", "neither"),
        (("-b", base, "-c", run_dir / "latest", "-o", out, "--imatrix", "/no.gguf"), "request_invalid", "/no.gguf"),
        (("-b", base, "-c", run_dir / "latest", "-o", "/dev/null/x"), "output_dir_not_writable", "/dev/null"),
    ]
    for arguments, code, fact in cases:
        ran = cli("submit", *arguments, "--json")
        assert (ran.code, ran.error["code"]) == (2, code)
        assert fact in ran.error["message"]
    assert not out.exists()
    # and with nothing wrong it is Redis that is missed
    assert cli("submit", "-b", base, "-c", run_dir / "latest", "-o", out).code == 3


def test_newer_checkpoints_that_the_word_passes_over_are_named(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    (run_dir / "checkpoint-3").mkdir()
    (run_dir / "checkpoint-3" / "optimizer.pt").write_bytes(b"x")
    config = run_dir / "checkpoint-2" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    ran = cli("submit", "-c", run_dir / "latest", "-o", tmp_path / "out")
    assert "checkpoint-3 is newer than checkpoint-2, but cannot be packaged: no weights" in " ".join(ran.err.split())
    ran = cli("submit", "-c", run_dir / "checkpoint-2", "-o", tmp_path / "out")
    assert "checkpoint-3" not in ran.err


def test_a_base_model_that_is_not_there_is_never_replaced_where_someone_gave_it(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    arguments = ("submit", "-b", tmp_path / "bsae", "-c", run_dir / "latest", "-o", tmp_path / "out", "--json")
    config = run_dir / "checkpoint-2" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    ran = cli(*arguments)
    assert (ran.code, ran.error["code"]) == (2, "base_model_not_found")
    assert ran.error["message"].endswith(f"bsae does not exist; did you mean {tmp_path / 'base'}?")
    assert ran.error["fields"]["suggestion"] == str(tmp_path / "base")


def test_the_base_model_of_a_task_that_has_moved_is_left_to_the_worker_where_the_adapter_names_it(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    task = {"task_id": "7", "status": "completed", "base_model": str(tmp_path / "gone"), "output_dir": str(run_dir)}
    (tmp_path / "task.json").write_text(json.dumps(task))
    arguments = ("submit", "--task", tmp_path / "task.json", "-c", "latest", "-o", tmp_path / "out")
    assert cli(*arguments).code == 2
    config = run_dir / "checkpoint-2" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    assert cli(*arguments).code == 3


def test_a_base_model_that_nobody_gives_is_the_one_that_the_adapter_names(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    arguments = ("submit", "-c", run_dir / "latest", "-o", tmp_path / "out")
    config = run_dir / "checkpoint-2" / "adapter_config.json"
    for relative in ("", "base", "./my/base", "a/b/c"):
        config.write_text(json.dumps({"base_model_name_or_path": relative}))
        assert cli(*arguments, "--json").error["code"] == "base_model_required"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    assert cli(*arguments, "--json").error["code"] == "base_model_not_found"
    for named, taken in ((str(tmp_path / "base"), str(tmp_path / "base")), ("owner/name", "hf://owner/name")):
        config.write_text(json.dumps({"base_model_name_or_path": named}))
        ran = cli(*arguments)
        assert ran.code == 3
        assert f"Base model {taken}, which checkpoint-2/adapter_config.json names" in ran.err.replace("\n", " ")
    assert "Base model" not in cli(*arguments, "-b", tmp_path / "base").err


def test_full_weights_for_a_merge_template_are_refused_naming_the_right_template(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    full = tmp_path / "full" / "checkpoint-5"
    full.mkdir(parents=True)
    (full / "model.safetensors").write_bytes(one_value())
    ran = cli("submit", "-b", tmp_path / "base", "-c", full, "-o", tmp_path / "out", "--json")
    assert (ran.code, ran.error["code"]) == (2, "checkpoint_not_adapter")
    assert "quantize_base" in ran.error["remedy"]
    assert cli("submit", "-t", "quantize_base", "-b", tmp_path / "base", "-c", full, "-o", tmp_path).code == 3


def test_paths_of_a_service_elsewhere_are_left_to_its_workers(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINPACK_REDIS_URL", "redis://elsewhere.test:1")
    ran = cli("submit", "-b", "/there/base", "-c", "/there/run/latest", "-o", "/there/out", "--json")
    assert ran.error["code"] == "redis_unreachable"
    assert ran.err.count("is not visible here") == 2


def test_messages_follow_the_locale_and_json_does_not(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    english = cli("list", "--json").out
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert cli("list", "--json").out == english
    ran = cli("list")
    assert "错误 redis_unreachable" in ran.err
    assert "原因: 无法连接 Redis。" in ran.err
    assert "处理: 用 `trainpack up` 启动" in ran.err


def test_an_error_that_nobody_foresaw_leaves_a_log_file(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api_client.cli.commands.reference.list_checkpoints", lambda _: 1 / 0)
    ran = cli("checkpoints", tmp_path, "--json")
    assert ran.code == 1
    assert ran.error["code"] == "internal_error"
    log = tmp_path / "home" / "logs"
    [path] = log.iterdir()
    assert ran.error["fields"] == {"log": str(path), "type": "ZeroDivisionError"}
    assert "Traceback" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_checkpoints_that_are_none_exit_2_with_the_reason_in_the_document(
    cli: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = cli("checkpoints", tmp_path / "gone", "--json")
    assert ran.code == 2
    assert ran.document["empty_reason"] == "directory_missing"
    assert ran.document["error"]["code"] == "checkpoints_empty"
    assert "does not exist" in ran.document["error"]["message"]
    assert "does not exist" in cli("checkpoints", tmp_path / "gone").out


def test_an_unknown_setting_of_the_worker_is_named(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINPACK_THREDS", "2")
    ran = cli("up", "--json")
    assert (ran.code, ran.error["code"]) == (2, "settings_invalid")
    assert "did you mean TRAINPACK_THREADS" in ran.error["message"]


def test_a_templates_file_with_a_mistake_is_told_before_the_worker_starts(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "templates.toml").write_text("[edge]\ntitel_en = 'Edge'\n")
    monkeypatch.setenv("TRAINPACK_TEMPLATES_FILE", str(tmp_path / "templates.toml"))
    ran = cli("worker", "--json")
    assert (ran.code, ran.error["code"]) == (2, "settings_invalid")
    assert "did you mean 'title_en'" in ran.error["message"]


def test_package_starts_no_stack_for_a_template_that_is_not_there(
    cli: Callable[..., Ran], tmp_path: Path, run_dir: Path
) -> None:
    ran = cli(
        "package", "-t", "mergequantize", "-b", tmp_path / "base", "-c", run_dir / "latest", "-o", "/out", "--json"
    )
    assert (ran.code, ran.error["code"]) == (2, "unknown_template")
    assert "did you mean 'merge_quantize'" in ran.error["message"]
    assert not (tmp_path / "home").exists()
