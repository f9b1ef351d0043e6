"""From flags to a request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api_client.cli.flags import RequestFlags
from api_client.cli.requests import build_request, check_paths
from tests.unit.cli.cli_samples import make_output


def test_every_flag_reaches_its_field(tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"task_id": "t", "status": "completed", "base_model": "/b", "output_dir": "/o"}))
    request = build_request(
        RequestFlags(
            template="custom",
            base="/base",
            checkpoint="best",
            output="s3://bucket/out",
            task=str(task),
            model_name="mine",
            quant_type=["q4_k_m,Q8_0", "f16"],
            gguf_dtype="BF16",
            imatrix="compute",
            calibration="/text.txt",
            set=[
                "merge-lora=yes",
                "export_lora=no",
                "keep_unquantized=off",
                "split_max_size_bytes=2000000",
                "chunks=7",
            ],
            overwrite=True,
            no_upload=True,
            label=["run=42", "note=a=b", "empty="],
            priority=9,
            idempotency_key="key",
        )
    )
    sent = request.model_dump(mode="json", exclude_unset=True)
    assert sent.pop("task")["task_id"] == "t"
    assert sent == {
        "template": "custom",
        "options": {"merge_lora": True, "export_lora": False},
        "base_model": "/base",
        "checkpoint": "best",
        "output_dir": "s3://bucket/out",
        "model_name": "mine",
        "quant_types": ["Q4_K_M", "Q8_0", "F16"],
        "gguf_dtype": "bf16",
        "imatrix": {"mode": "compute", "calibration": "/text.txt", "chunks": 7},
        "keep_unquantized": False,
        "split_max_size_bytes": 2_000_000,
        "overwrite": True,
        "upload": False,
        "priority": 9,
        "labels": {"run": "42", "note": "a=b", "empty": ""},
        "idempotency_key": "key",
    }


def test_flags_not_given_leave_the_defaults() -> None:
    request = build_request(RequestFlags())
    assert (request.template, request.quant_types, request.imatrix.mode, request.priority) == (
        "merge_quantize",
        None,
        "auto",
        5,
    )
    assert build_request(RequestFlags(imatrix="/m.gguf")).imatrix.path == "/m.gguf"
    assert build_request(RequestFlags(calibration="/c.txt")).imatrix.mode == "compute"


def test_a_word_below_a_run_is_written_out_and_other_references_stay(tmp_path: Path, run_dir: Path) -> None:
    base = {"base": str(tmp_path / "base"), "output": str(tmp_path / "out")}
    for given, sent in (
        (f"{run_dir}/latest", str(run_dir / "checkpoint-2")),
        (str(run_dir / "checkpoint-1"), str(run_dir / "checkpoint-1")),
        ("s3://bucket/run/checkpoint-1", "s3://bucket/run/checkpoint-1"),
    ):
        request = build_request(RequestFlags(checkpoint=given, label=["a=b"], **base))
        checked = check_paths(request, make_output(), sees_files=True)
        assert checked.checkpoint == sent
        assert checked.labels == {"a": "b"}


def test_a_bare_name_is_the_run_s_checkpoint_else_a_directory_here(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir)
    here = {"base": str(tmp_path / "base"), "checkpoint": "checkpoint-1"}
    elsewhere = build_request(RequestFlags(output="../out", **here))
    assert check_paths(elsewhere, make_output(), sees_files=True).checkpoint == str(run_dir / "checkpoint-1")
    remote = build_request(RequestFlags(output="s3://bucket/out", **here))
    assert check_paths(remote, make_output(), sees_files=True).checkpoint == str(run_dir / "checkpoint-1")
    into_the_run = build_request(RequestFlags(output=".", **here))
    assert check_paths(into_the_run, make_output(), sees_files=True).checkpoint == "checkpoint-1"


def test_words_are_looked_up_in_the_task_s_run(tmp_path: Path, run_dir: Path) -> None:
    task = {"task_id": "t", "status": "failed", "base_model": str(tmp_path / "base"), "output_dir": str(run_dir)}
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task))
    request = build_request(RequestFlags(checkpoint="latest", task=str(path)))
    assert check_paths(request, make_output(), sees_files=True) == request
