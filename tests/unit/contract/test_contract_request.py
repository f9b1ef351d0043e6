"""Request validation: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.contract.task import TaskStatus

C = ErrorCode
TASK = {"task_id": "t-1", "status": "completed", "base_model": "/models/base", "output_dir": "/runs/42"}


def refused(**data: Any) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        PackagingRequest(**data)
    error = caught.value
    assert error.remedy
    json.dumps(error.to_dict())
    return error


@pytest.mark.parametrize(
    ("data", "suggestion"),
    [
        ({"base_modle": "/x"}, "base_model"),
        ({"checkpiont": "/x"}, "checkpoint"),
        ({"quant_type": ["Q8_0"]}, "quant_types"),
        ({"options": {"quantise": True}}, "quantize"),
        ({"options": {"merge": True}}, "merge_lora"),
        ({"task": TASK | {"output": "/x"}}, "output_dir"),
        ({"imatrix": {"calibraton": "/x"}}, "calibration"),
        ({"zzzzzz": 1}, None),
    ],
)
def test_a_misspelt_field_is_refused_with_the_one_that_was_meant(data: dict[str, Any], suggestion: str | None) -> None:
    error = refused(**data)
    assert error.code is C.UNKNOWN_FIELD
    assert error.fields["suggestion"] == suggestion
    assert (f"did you mean {suggestion!r}" in error.message) is (suggestion is not None)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("Q6_KM", "Q6_K"), ("q4km", "Q4_K_M"), ("Q9_0", "Q8_0"), ("fp16", "F16"), ("\u00e9", None)],
)
def test_an_unknown_quant_type_is_refused_with_the_nearest(name: str, suggestion: str | None) -> None:
    error = refused(quant_types=["Q8_0", name])
    assert error.code is C.QUANT_TYPE_UNKNOWN
    if suggestion is None:
        assert error.fields["suggestion"] is None
    else:
        assert error.fields["suggestion"] in (suggestion, "Q4_K_M")


def test_quant_types_may_be_written_small_and_alone() -> None:
    assert PackagingRequest(quant_types="q4_k_m").quant_types == (QuantType.Q4_K_M,)
    assert PackagingRequest(quant_types=[" q8_0 ", "iq1_s"]).quant_types == (QuantType.Q8_0, QuantType.IQ1_S)


@pytest.mark.parametrize("value", ["yes", "false", 1, 0, 1.0, None, []])
@pytest.mark.parametrize("field", ["overwrite", "upload", "keep_unquantized", "save_merged", "companions"])
def test_a_switch_is_on_or_off_and_nothing_that_reads_like_it(field: str, value: Any) -> None:
    assert refused(**{field: value}).fields["field"] == field
    assert value is None or refused(options={"merge_lora": value}).fields["field"] == "options.merge_lora"


@pytest.mark.parametrize("value", [True, False, "many", 1.5, -1, 10, None])
def test_a_priority_is_a_number_from_0_to_9(value: Any) -> None:
    assert refused(priority=value).fields["field"] == "priority"


@pytest.mark.parametrize("value", [{"Q4_K_M": 1}, b"Q4_K_M", 4])
def test_quant_types_are_a_list(value: Any) -> None:
    assert refused(quant_types=value).code is C.REQUEST_INVALID


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        ".hidden",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
        "a\tb",
        "x" * 121,
        "模" * 80,
        "a\x7f",
    ],
)
def test_a_model_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    error = refused(model_name=name)
    assert error.code is C.REQUEST_INVALID
    assert error.message.startswith("model_name:")


@pytest.mark.parametrize("name", ["llama-3.2-1b", "模型", "a b", "x" * 120, "model.v2.gguf"])
def test_plain_model_names_are_accepted(name: str) -> None:
    assert PackagingRequest(model_name=name).model_name == name


@pytest.mark.parametrize("field", ["base_model", "checkpoint", "output_dir"])
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("/a\0b", "NUL"),
        ("ftp://host/x", "scheme"),
        ("file:///x", "scheme"),
        ("S3://bucket/x", "scheme"),
        ("s3://", "bucket"),
        ("s3:///key", "bucket"),
        ("/" + "a" * 5000, "long"),
        ("~no-such-user-here/x", "home"),
    ],
)
def test_a_location_that_cannot_be_meant_is_refused(field: str, location: str, reason: str) -> None:
    error = refused(**{field: location})
    assert error.code is C.REQUEST_INVALID
    assert error.message.startswith(f"{field}:")
    assert reason in error.message


def test_hugging_face_locations_name_owner_and_model_and_cannot_be_written_to() -> None:
    assert PackagingRequest(base_model="hf://owner/name").base_model == "hf://owner/name"
    assert PackagingRequest(base_model="hf://owner/name@v1").base_model == "hf://owner/name@v1"
    assert "owner/name" in refused(base_model="hf://name").message
    assert "hf://" in refused(output_dir="hf://owner/name").message


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    request = PackagingRequest(base_model=Path("models/base"), checkpoint="./checkpoint-9", output_dir="~/out dir/包")
    assert request.base_model == str(tmp_path / "models/base")
    assert request.checkpoint == str(tmp_path / "checkpoint-9")
    assert request.output_dir == str(tmp_path / "home/out dir/包")
    assert PackagingRequest(base_model="s3://bucket/a/b/").base_model == "s3://bucket/a/b"


@pytest.mark.parametrize("word", ["latest", "best", "checkpoint-900"])
def test_checkpoint_words_and_bare_names_are_kept_for_the_run_s_directory(word: str) -> None:
    assert PackagingRequest(checkpoint=word).checkpoint == word


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"gguf_dtype": "f64"}, "gguf_dtype"),
        ({"labels": {"a=b": "c"}}, "labels"),
        ({"labels": {"": "c"}}, "labels"),
        ({"labels": {"k" * 64: "c"}}, "labels"),
        ({"labels": {"k": "v" * 201}}, "labels"),
        ({"labels": {str(i): "v" for i in range(33)}}, "labels"),
        ({"labels": {"k\x1b]0;x": "v"}}, "labels"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"quant_types": 7}, "quant_types"),
        ({"base_model": 7}, "base_model"),
        ({"imatrix": {"mode": "file"}}, "imatrix"),
        ({"imatrix": {"mode": "off", "chunks": 3}}, "imatrix"),
        ({"imatrix": {"path": "/m", "chunks": 3}}, "imatrix"),
        ({"imatrix": {"chunks": 0}}, "imatrix.chunks"),
        ({"split_max_size_bytes": 5}, "split_max_size_bytes"),
        ({"task": TASK | {"status": "paused"}}, "task.status"),
        ({"template": None}, "template"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_field(data: dict[str, Any], field: str) -> None:
    error = refused(**data)
    assert error.code is C.REQUEST_INVALID
    assert error.fields["field"] == field
    assert error.message.startswith(f"{field}:")


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ("auto", "auto"),
        ("off", "off"),
        ("compute", "compute"),
        ("/m.gguf", "file"),
        (Path("/m.gguf"), "file"),
        ({"calibration": "/c.txt"}, "compute"),
        ({"chunks": 5}, "compute"),
        ({"path": "/m.dat"}, "file"),
        ({}, "auto"),
    ],
)
def test_imatrix_has_short_forms(given: Any, mode: str) -> None:
    assert PackagingRequest(imatrix=given).imatrix.mode == mode


def test_a_request_survives_json_and_does_not_change() -> None:
    request = PackagingRequest(
        template="custom",
        options={"merge_lora": False},
        task=TASK,
        quant_types=["Q8_0"],
        imatrix="/m",
        labels={"run": "42", "标签": "值"},
        idempotency_key="k",
    )
    assert PackagingRequest.from_json(request.model_dump_json()) == request
    with pytest.raises(ValueError, match="frozen"):
        request.priority = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"priority": "x"}', b"\xff\xfe", '{"a": 1}'])
def test_text_that_is_no_request_is_refused_with_a_code(text: bytes | str) -> None:
    with pytest.raises(PackagingError) as caught:
        PackagingRequest.from_json(text)
    assert caught.value.code in (C.REQUEST_INVALID, C.UNKNOWN_FIELD)


@pytest.mark.parametrize("status", list(TaskStatus))
def test_only_ended_tasks_can_be_packaged(status: TaskStatus) -> None:
    request = PackagingRequest(task=TASK | {"status": status}, checkpoint="latest")
    if status in ("completed", "stopped", "failed"):
        resolved, _ = resolve_request(request)
        assert (resolved.base_model, resolved.output_dir) == ("/models/base", "/runs/42")
        return
    with pytest.raises(PackagingError, match=status.value) as caught:
        resolve_request(request)
    assert caught.value.code is C.TASK_NOT_PACKAGEABLE
    assert caught.value.fields == {"task_id": "t-1", "status": status.value}


def test_the_request_s_own_paths_win_over_the_task_s() -> None:
    request = PackagingRequest(task=TASK, checkpoint="best", base_model="/mine", output_dir="/mine/out", priority=2)
    resolved, _ = resolve_request(request)
    assert (resolved.base_model, resolved.output_dir, resolved.priority) == ("/mine", "/mine/out", 2)


def test_a_task_s_relative_paths_mean_the_same_to_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = PackagingRequest(task=TASK | {"base_model": "base", "output_dir": "runs/42"}, checkpoint="latest")
    assert request.task is not None
    assert (request.task.base_model, request.task.output_dir) == (str(tmp_path / "base"), str(tmp_path / "runs/42"))
    assert refused(task=TASK | {"output_dir": "ftp://x"}).fields["field"] == "task.output_dir"


def test_a_fully_fine_tuned_task_is_refused_by_a_merge_template_before_it_is_queued() -> None:
    task = TASK | {"finetuning": "full"}
    for template in ("merge_quantize", "merge", "lora_only"):
        with pytest.raises(PackagingError, match="t-1") as caught:
            resolve_request(PackagingRequest(template=template, task=task, checkpoint="latest"))
        assert caught.value.code is C.CHECKPOINT_NOT_ADAPTER
        assert "quantize_base" in caught.value.remedy
    resolve_request(PackagingRequest(template="quantize_base", task=task, checkpoint="latest"))


def test_importing_the_contract_pulls_in_no_worker_and_no_config() -> None:
    code = (
        "import sys, api_client.contract.request, api_client.contract.rules, api_client.contract.plan,"
        " api_client.contract.job, api_client.contract.events;"
        "bad = {'torch', 'config', 'worker', 'numpy', 'transformers', 'boto3', 'celery'} & set(sys.modules);"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
