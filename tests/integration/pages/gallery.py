"""A service with a job in every state, made by a real worker: what pages are looked at with, by people and by axe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from api_client.contract.job import Job
from api_client.contract.quality import REPORT_FACT
from api_client.contract.task import TaskStatus, TrainingTask
from tests.integration.harness import Installation
from tests.integration.pages.test_quality_page import report
from tests.unit.contract.test_checkpoints import LOSSES, make_run


@dataclass(frozen=True)
class Gallery:
    """The jobs, by what they show."""

    succeeded: Job
    retried: Job
    failed: Job
    cancelled: Job
    running: Job
    queued: Job

    def addresses(self) -> dict[str, str]:
        """Every page and state that a person can come to, by name."""
        form = "/new?source=paths&base_model=/models/base&checkpoint=/runs/1/checkpoint-9&form=gallery"
        return {
            "jobs": "/jobs",
            "jobs filtered": "/jobs?state=failed&label=team=red",
            "jobs none": "/jobs?label=team=nobody",
            "jobs refused": "/jobs?label=team",
            "jobs of no view": "/jobs?state=lost",
            "cancel all": "/jobs/chosen?action=cancel&every=1",
            "replay failed": "/jobs/chosen?action=replay&every=1&state=failed",
            "job log found": f"/jobs/{self.retried.id}?find=attempt&level=warning",
            "job succeeded": f"/jobs/{self.succeeded.id}",
            "job retried": f"/jobs/{self.retried.id}",
            "job failed": f"/jobs/{self.failed.id}",
            "job cancelled": f"/jobs/{self.cancelled.id}",
            "job running": f"/jobs/{self.running.id}",
            "job queued": f"/jobs/{self.queued.id}",
            "job of no log": f"/jobs/{self.failed.id}?kind=Quantization",
            "no such job": "/jobs/20200101-000000-aaaaaa",
            "new": "/new",
            "new of a task": "/new?source=task&form=gallery",
            "new of paths": form,
            "new no export": f"{form}&template=custom&switches_shown=1&switches=export_lora",
            "new merge": f"{form}&template=merge",
            "new custom": f"{form}&template=custom",
            "workers": "/workers",
            "overview": "/overview",
            "queues": "/queues",
            "no such page": "/nothing",
        }


def fill(service: Installation) -> Gallery:
    """Run the jobs. The worker goes on holding one of them, so that another waits."""
    run = make_run(service.directory / "runs" / "velmora" / "sft-42", LOSSES)
    service.start_worker(slots=1, run_roots=f"{service.directory / 'runs'}:/nowhere")
    task = TrainingTask(task_id="sft-42", status=TaskStatus.COMPLETED, base_model="/models/base", output_dir=str(run))
    service.client.register_task(task, {"checkpoint-1000": {"accuracy": 0.913}})
    ended = {
        "succeeded": service.submit("succeeded", labels={"team": "red", "run": "42"}, evaluation={"max_mean_kld": 0.1}),
        "retried": service.submit("retried", labels={"team": "blue", "convert": "transient:1", "quantize": "crash:1"}),
        "failed": service.submit("failed", labels={"team": "red", "merge": "permanent"}),
    }
    jobs = {name: service.wait(job) for name, job in ended.items()}
    facts = json.dumps({REPORT_FACT: report().model_dump(mode="json", exclude_none=True)})
    service.redis.hset(service.keys.stages(jobs["succeeded"].id), "evaluate:facts", facts)
    jobs["running"] = service.submit("running", labels={"team": "blue", "quantize": "hold"})
    service.held("quantize", output="running")
    jobs["cancelled"] = service.client.cancel(service.submit("cancelled").id)
    jobs["queued"] = service.submit("queued", labels={"team": "red"}, priority=7)
    service.client.pause("queue:packaging.heavy", by="the-operator")
    service.client.set_limit("team=red", 2, by="the-operator")
    return Gallery(**jobs)


def multiply(service: Installation, jobs: Sequence[Job], count: int) -> None:
    """Put so many copies of some jobs' records beside them, each under an id and at a second of its own."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    keys = service.keys
    records = [[service.redis.hgetall(of(job.id)) for of in (keys.job, keys.stages)] for job in jobs]
    attempts = [service.redis.lrange(keys.attempts(job.id), 0, -1) for job in jobs]
    pipe = service.redis.pipeline(transaction=False)
    for number in range(count):
        which = number % len(jobs)
        (job_hash, stages), created = records[which], start + timedelta(seconds=number)
        job_id = f"{created:%Y%m%d-%H%M%S}-{number:06d}"
        at = int(created.timestamp() * 1000)
        labels = {**json.loads(job_hash["labels"]), "run": str(number)}
        request = {**json.loads(job_hash["request"]), "labels": labels, "output_dir": f"/out/of/run-{number}"}
        own = {"id": job_id, "created_at": at, "request": json.dumps(request), "labels": json.dumps(labels)}
        pipe.hset(keys.job(job_id), mapping=job_hash | own)
        pipe.hset(keys.stages(job_id), mapping=stages)
        if attempts[which]:
            pipe.rpush(keys.attempts(job_id), *attempts[which])
        pipe.zadd(keys.named("jobs"), {job_id: at})
        pipe.zadd(keys.state_index(job_hash["state"]), {job_id: at})
        if number % 1000 == 999:
            pipe.execute()
    pipe.execute()
