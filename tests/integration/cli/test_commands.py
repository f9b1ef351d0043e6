"""The commands against a real service: results, JSON, exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from pathlib import Path

import pytest

from tests.integration.cli.conftest import CommandLine, inputs
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration


def test_a_job_from_submit_to_downloaded_outputs(
    trainpack: CommandLine, installed: Installation, tmp_path: Path
) -> None:
    job_id = trainpack.submit("whole", "--label", "run=42", "-q", "Q8_0", "--priority", "7")
    waited = trainpack("wait", job_id, "--json")
    assert waited.code == 0
    assert waited.document["state"] == "succeeded"
    assert waited.document["request"]["quant_types"] == ["Q8_0"]
    status = trainpack("status", job_id)
    assert status.code == 0
    assert "succeeded" in status.out
    assert "merged_model.gguf" in status.out
    listed = trainpack("list", "--label", "run=42", "--state", "succeeded", "--since", "1h", "--json").document
    assert [one["id"] for one in listed["jobs"]] == [job_id]
    assert listed["cursor"] is None
    outputs = trainpack("outputs", job_id, "--json").document["outputs"]
    fetched = trainpack("outputs", job_id, "--download", tmp_path / "copy", "--json")
    assert fetched.code == 0
    for one, file in zip(outputs, fetched.document["files"], strict=True):
        assert hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() == one["sha256"]
    trainpack.submit("whole-2", "--label", "run=42")
    page = trainpack("list", "--label", "run=42", "--limit", "1", "--json").document
    rest = trainpack("list", "--label", "run=42", "--cursor", page["cursor"], "--json").document
    assert [one["id"] for one in rest["jobs"]] == [job_id]


def test_logs_are_lines_that_can_be_resumed(trainpack: CommandLine) -> None:
    job_id = trainpack.submit("logs", quantize="noisy:5")
    assert trainpack("wait", job_id).code == 0
    entries = trainpack("logs", job_id, "--json").lines
    assert entries[0]["message"] == "Job submitted"
    assert entries[-1]["message"] == "Job succeeded"
    assert {"Merge LoRA", "GGUF conversion", "Quantization", "Command success"} <= {one["kind"] for one in entries}
    assert "Progress" not in {one["kind"] for one in entries}
    assert "Progress" in {one["kind"] for one in trainpack("logs", job_id, "--all", "--json").lines}
    middle = entries[len(entries) // 2]["id"]
    rest = trainpack("logs", job_id, "--after", middle, "--json").lines
    assert [one["id"] for one in rest] == [one["id"] for one in entries[len(entries) // 2 + 1 :]]
    followed = trainpack("logs", job_id, "--follow")
    assert followed.code == 0
    assert "Quantization      line 4" in followed.out


def test_a_failed_job_is_exit_code_1_everywhere_and_tells_its_remedy(
    trainpack: CommandLine, installed: Installation
) -> None:
    job_id = trainpack.submit("failed", "--label", "batch=bad", convert="permanent")
    waited = trainpack("wait", job_id, "--json")
    assert waited.code == 1
    assert waited.document["error"]["code"] == "base_model_invalid"
    watched = trainpack("watch", job_id)
    assert watched.code == 1
    assert watched.out == ""
    assert "Error base_model_invalid\n  config.json has no architectures" in watched.err
    assert "Remedy: " in watched.err
    lines = trainpack("watch", job_id, "--json")
    assert lines.code == 1
    assert all(list(line) == ["event"] for line in lines.lines[:-1])
    assert lines.lines[-1]["job"]["state"] == "failed"
    in_one = trainpack(
        "submit",
        *inputs(installed),
        "-o",
        installed.directory / "failed-2",
        "-l",
        "merge=permanent",
        "--wait",
        "--json",
    )
    assert in_one.code == 1
    assert in_one.document["state"] == "failed"
    assert f"trainpack watch {in_one.document['id']}" in in_one.err
    [worker] = installed.workers
    worker.signal(signal.SIGSTOP)  # or the job might have failed again before its state is read
    try:
        replayed = trainpack("replay", job_id, "--from-stage", "convert", "--json")
    finally:
        worker.signal(signal.SIGCONT)
    assert (replayed.code, replayed.document["state"]) == (0, "queued")
    assert trainpack("wait", job_id).code == 1
    again = trainpack("replay", "--failed", "--since", "1h", "--code", "base_model_invalid", "--json").document["jobs"]
    assert job_id in [one["id"] for one in again]
    assert trainpack("replay", job_id, "--from-stage", "export_lora", "--json").document["error"]["code"] in (
        "stage_not_in_plan",
        "job_running",
    )


def test_a_running_job_can_be_cancelled(trainpack: CommandLine, installed: Installation) -> None:
    job_id = trainpack.submit("cancelled", merge="hold")
    installed.held("merge", output="cancelled")
    cancelled = trainpack("cancel", job_id, "--json")
    assert cancelled.code == 0
    assert cancelled.document["cancel_requested"] or cancelled.document["state"] == "cancelled"
    waited = trainpack("wait", job_id, "--json")
    assert (waited.code, waited.document["state"]) == (1, "cancelled")
    again = trainpack("cancel", job_id, "--json")
    assert (again.code, again.document["error"]["code"]) == (2, "job_finished")


def test_jobs_are_named_by_parts_chosen_by_what_they_are_and_acted_on_together(
    trainpack: CommandLine, installed: Installation
) -> None:
    first, second = (trainpack.submit(f"many-{n}", "--label", "batch=many", merge="hold") for n in range(2))
    assert trainpack("status", "last", "--json").document["id"] == second
    assert trainpack("status", "last~1", "--json").document["id"] == first
    assert trainpack("status", first[-6:], "--json").document["id"] == first
    shared = trainpack("status", first[:5], "--json").document["error"]
    assert (shared["code"], len(shared["fields"]["matches"]) > 1) == ("request_invalid", True)
    found = trainpack("list", "--search", "MANY-1", "--json").document["jobs"]
    assert [one["id"] for one in found] == [second]
    would = trainpack("cancel", "--label", "batch=many", "--dry-run", "--json").document["jobs"]
    assert {one["id"] for one in would} == {first, second}
    assert not any(one["cancel_requested"] for one in would)
    assert trainpack("cancel", "--json").document["error"]["code"] == "request_invalid"
    both = trainpack("cancel", first[-6:], second, "--json")
    assert (both.code, len(both.document["jobs"])) == (0, 2)
    assert trainpack("wait", first).code == trainpack("wait", second).code == 1
    again = trainpack("replay", "--label", "batch=many", "--state", "cancelled", "--dry-run", "--json").document
    assert {one["id"] for one in again["jobs"]} == {first, second}


def test_a_log_is_searched_and_cut_by_level(trainpack: CommandLine) -> None:
    job_id = trainpack.submit("levels", "--label", "convert=transient:1")
    assert trainpack("wait", job_id).code == 0
    serious = trainpack("logs", job_id, "--level", "warning", "--json").lines
    assert serious
    assert {one["level"] for one in serious} <= {"warning", "error"}
    assert "WARNING" in trainpack("logs", job_id).out
    found = trainpack("logs", job_id, "--grep", "SUBMITTED", "--json").lines
    assert {one["message"] for one in found} == {"Job submitted"}
    wrong = trainpack("logs", job_id, "--level", "warn", "--json").document["error"]
    assert wrong["fields"]["suggestion"] == "warning"


def test_waiting_has_a_bound(trainpack: CommandLine, installed: Installation) -> None:
    job_id = trainpack.submit("bounded", merge="hold")
    waited = trainpack("wait", job_id, "--timeout", "0.2", "--json")
    assert (waited.code, waited.document["error"]["code"]) == (1, "wait_timeout")
    installed.let_go("merge", "bounded")
    assert trainpack("wait", job_id).code == 0


def test_a_key_makes_one_job_and_refuses_another_request(trainpack: CommandLine, installed: Installation) -> None:
    first = trainpack.submit("key", "--idempotency-key", "k-1")
    assert trainpack.submit("key", "--idempotency-key", "k-1") == first
    other = trainpack("submit", *inputs(installed), "-o", "/tmp", "--idempotency-key", "k-1", "--json")
    assert (other.code, other.document["error"]["code"]) == (2, "idempotency_conflict")


def test_a_task_comes_from_standard_input(trainpack: CommandLine, installed: Installation) -> None:
    flags = inputs(installed)
    task = {
        "task_id": "t-1",
        "status": "stopped",
        "base_model": flags[1],
        "output_dir": str(installed.directory / "run"),
    }
    ran = trainpack("submit", "--task", "-", "--checkpoint", "latest", "--json", stdin=json.dumps(task))
    assert ran.code == 0, ran
    assert ran.document["request"]["output_dir"] == str(installed.directory / "run")
    assert ran.document["request"]["checkpoint"] == "latest"


def test_unknown_jobs_templates_and_states_are_bad_requests(trainpack: CommandLine, installed: Installation) -> None:
    for command in ("status", "logs", "watch", "wait", "cancel", "replay", "outputs"):
        ran = trainpack(command, "20200101-000000-zzzzzz", "--json")
        assert (ran.code, ran.document["error"]["code"]) == (2, "job_not_found"), command
    ran = trainpack("submit", *inputs(installed), "-o", "/tmp", "-t", "mege", "--json")
    assert (ran.code, ran.document["error"]["fields"]["suggestion"]) == (2, "merge")


def test_the_service_shows_its_workers_and_queues(trainpack: CommandLine) -> None:
    document = trainpack("status", "--json").document
    assert len(document["workers"]) == 1
    assert document["workers"][0]["torch_loaded"] is False
    assert "packaging.heavy" in [queue["name"] for queue in document["queues"]]
    assert document["redis"]["version"]
    assert "packaging.heavy" in trainpack("status").out


def test_watch_without_ids_follows_everything_that_is_open(trainpack: CommandLine, installed: Installation) -> None:
    jobs = [trainpack.submit(f"open-{number}", merge="hold") for number in range(2)]
    for number in range(2):
        installed.let_go("merge", f"open-{number}")
    ran = trainpack("watch", "--json")
    assert ran.code == 0
    ended = {line["job"]["id"] for line in ran.lines if "job" in line}
    states = [trainpack("status", job_id, "--json").document["state"] for job_id in jobs]
    assert states == ["succeeded", "succeeded"]
    assert ended <= set(jobs)
    eventually(lambda: trainpack("watch").code == 0, "nothing left to watch")


def test_an_importance_matrix_announces_its_time_before_it_begins(
    trainpack: CommandLine, installed: Installation, tmp_path: Path
) -> None:
    flags = [*inputs(installed), "-q", "IQ2_M", "--output"]
    base = Path(flags[flags.index("--base") + 1])
    (base / "model.safetensors").write_bytes(bytes(1000))
    first = trainpack("submit", *flags, tmp_path / "first", "--wait")
    assert first.code == 0, first
    assert "importance matrix" in first.err
    again = trainpack("submit", *flags, tmp_path / "again")
    assert re.search(r"importance matrix will take about [\d.]+ s", again.err), again
    plain = trainpack("submit", *inputs(installed), "--output", tmp_path / "plain")
    assert "importance matrix" not in plain.err
