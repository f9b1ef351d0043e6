"""Jobs of one value of a label cannot starve another's: new jobs are begun in turn, by weight, within a priority."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from api_client import Job, PackagingError
from tests.bench.fairness import LARGE, SMALL_TENANTS, Backlog
from tests.integration.harness import Installation, eventually

pytestmark = pytest.mark.integration


def in_order(service: Installation, jobs: Iterable[Job]) -> list[str]:
    """Output directories of jobs, in the order in which they were begun."""
    ended = [service.wait(job) for job in jobs]
    assert {job.state for job in ended} == {"succeeded"}
    return [Path(str(job.request.output_dir)).name for job in sorted(ended, key=lambda job: str(job.started_at))]


def test_a_worker_begins_jobs_in_turn_and_by_weight(service: Installation) -> None:
    service.client.set_fair_label("team", by="ops")
    service.client.set_weight("red", 2, by="ops")
    jobs = [service.submit(f"red{number}", labels={"team": "red"}) for number in range(6)]
    jobs += [service.submit(f"blue{number}", labels={"team": "blue"}) for number in range(2)]
    jobs += [service.submit("plain0")]
    urgent = service.submit("urgent", labels={"team": "red"}, priority=9)
    service.start_worker()
    order = in_order(service, [*jobs, urgent])
    assert order[0] == "urgent"
    assert set(order[1:5]) >= {"red0", "blue0", "plain0"}
    assert order.index("blue1") < order.index("red4")
    assert [name for name in order if name.startswith("red")] == [f"red{number}" for number in range(6)]
    assert service.redis.keys(f"{service.prefix}:fair:*") == []
    assert [(change.action, change.value) for change in service.client.changes()] == [
        ("fairness", "2"),
        ("fairness", "team"),
    ]


def test_doubled_and_lost_messages_start_each_job_once(service: Installation) -> None:
    service.client.set_fair_label("team")
    jobs = [service.submit(f"job{number}", labels={"team": "ab"[number > 4]}) for number in range(8)]
    queue = service.keys.broker_prefix + "packaging.io\x06\x164"
    texts = service.redis.lrange(queue, 0, -1)
    assert len(texts) == len(jobs)
    service.redis.delete(queue)
    service.redis.lpush(queue, *texts[:3], *texts[:3])  # five are lost, three doubled
    service.start_worker(slots=2)
    assert sorted(in_order(service, jobs)) == [f"job{number}" for number in range(8)]
    for job in jobs:
        assert [len(stage.attempts) for stage in service.client.get(job.id).stages] == [1] * len(job.stages)


def test_jobs_that_wait_already_join_when_a_label_is_chosen(service: Installation) -> None:
    jobs = [service.submit(f"red{number}", labels={"team": "red"}) for number in range(4)]
    jobs += [service.submit("blue0", labels={"team": "blue"})]
    service.client.set_fair_label("team")
    service.start_worker()
    assert in_order(service, jobs).index("blue0") < 2


def test_a_cap_and_a_line_together_leave_nobody_behind(service: Installation) -> None:
    service.client.set_fair_label("team")
    service.client.set_limit("team=red", 1)
    jobs = [service.submit(f"red{number}", labels={"team": "red"}) for number in range(4)]
    jobs += [service.submit(f"blue{number}", labels={"team": "blue"}) for number in range(4)]
    service.start_worker(slots=3)
    assert len(in_order(service, jobs)) == 8


def test_small_tenants_do_not_wait_for_a_large_one(service: Installation, tmp_path: Path) -> None:
    waits = {}
    for label in (None, "team"):
        backlog = Backlog(service.url, f"{service.prefix}{label}", tmp_path)
        backlog.client.set_fair_label(label)
        backlog.submit(LARGE, 60)
        for tenant in SMALL_TENANTS:
            backlog.submit(tenant, 2)
        found = backlog.run(1)
        assert sum(map(len, found.values())) == 60 + 2 * len(SMALL_TENANTS)
        waits[label] = max(second for tenant in SMALL_TENANTS for second in found[tenant])
        backlog.client.close()
    assert waits["team"] == 2 * (1 + len(SMALL_TENANTS)) - 1
    assert waits[None] == 60 + 2 * len(SMALL_TENANTS) - 1


@pytest.mark.parametrize("label", ["", "a=b", "x" * 64])
def test_what_is_no_label_is_refused(service: Installation, label: str) -> None:
    with pytest.raises(PackagingError, match="is no label"):
        service.client.set_fair_label(label)
    with pytest.raises(PackagingError, match="from 1 to 1000"):
        service.client.set_weight("red", 0)
    assert service.client.fairness().label is None
    eventually(lambda: service.client.changes() == [], "nothing was changed")
