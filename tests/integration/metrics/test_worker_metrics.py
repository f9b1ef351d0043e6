"""The metrics port of a real worker: what it counts, and what happens without its port."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_client import JobState
from tests.integration.harness import Installation, Worker, eventually


def address_of(worker: Worker) -> str:
    lines = (json.loads(line) for line in worker.lines.splitlines() if line.startswith("{"))
    return next(str(line["address"]) for line in lines if line["event"] == "metrics_ready")


class Scrape:
    def __init__(self, worker: Worker) -> None:
        with urllib.request.urlopen(address_of(worker), timeout=10) as answer:
            text = answer.read().decode()
        self.samples = {
            (sample.name.removeprefix("trainpack_"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)


def test_a_worker_counts_what_it_does(service: Installation) -> None:
    worker = service.start_worker(metrics_port=0, slots=2)
    done = service.submit("good", labels={"convert": "transient:1"})
    bad = service.submit("bad", labels={"merge": "permanent"})
    held = service.submit("held", labels={"quantize": "hold"})
    assert service.wait(done).state is JobState.SUCCEEDED
    assert service.wait(bad).state is JobState.FAILED
    service.held("quantize", output="held")
    # A job's end is counted after it is recorded.
    eventually(lambda: all(Scrape(worker)("jobs_finished_total", state=end) for end in ("succeeded", "failed")), "ends")

    now = Scrape(worker)
    assert now("stage_duration_seconds_count", stage="convert", outcome="retried") == 1
    assert now("stage_duration_seconds_count", stage="convert", outcome="succeeded") == 2
    assert now("stage_duration_seconds_count", stage="merge", outcome="failed") == 1
    assert now("stage_retries_total", stage="convert", code="upload_failed") == 1
    assert now("stage_failures_total", stage="merge", code="base_model_invalid") == 1
    assert now("stage_throughput_bytes_per_second_count", stage="merge") == 2
    assert now("jobs_finished_total", state="succeeded") == now("jobs_finished_total", state="failed") == 1
    assert now("worker_stages_running", stage="quantize") == 1
    assert now("worker_slots") == 2
    assert now("worker_draining") == 0
    eventually(lambda: Scrape(worker)("lease_renewal_delay_seconds_count") > 0, "renewals counted")
    disks = [value for (name, _), value in now.samples.items() if name == "scratch_free_bytes"]
    assert disks
    assert min(disks) > 0
    [info] = [dict(labels) for (name, labels) in now.samples if name == "worker_info"]
    assert info["worker"] == service.client.workers()[0].name

    service.client.cancel(held.id)
    assert service.wait(held).state is JobState.CANCELLED
    eventually(lambda: Scrape(worker)("jobs_finished_total", state="cancelled") == 1, "cancel counted")
    eventually(lambda: Scrape(worker)("worker_stages_running", stage="quantize") == 0, "no stage running")


@pytest.mark.short_lease
def test_a_rescue_is_counted_by_the_rescuer(service: Installation) -> None:
    first = service.start_worker()
    job = service.submit(labels={"merge": "hold"})
    service.held("merge")
    second = service.start_worker(metrics_port=0)
    first.kill()
    service.let_go("merge")
    assert service.wait(job).state is JobState.SUCCEEDED
    now = Scrape(second)
    assert now("rescues_total", stage="merge") == 1
    assert now("stage_retries_total", stage="merge", code="worker_lost") == 1


def test_a_taken_port_costs_nothing_but_the_metrics(service: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = service.start_worker(metrics_port=taken.getsockname()[1])
        assert service.wait(service.submit()).state is JobState.SUCCEEDED
    assert "metrics_off" in worker.lines
    assert "Address already in use" in worker.lines
    assert worker.stop() == 0
