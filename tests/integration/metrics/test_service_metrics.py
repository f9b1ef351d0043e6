"""The console's metrics: the installation as Redis has it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from api_client import PackagingClient
from api_client.console.metrics import metrics_text
from api_client.contract.metric_names import METRICS, Exporter
from tests.integration.harness import Installation, eventually


def scrape(client: PackagingClient) -> dict[tuple[str, ...], float]:
    """Values by name and labels, in the table's order."""
    found = {}
    for family in text_string_to_metric_families(metrics_text(client).decode()):
        if family.name in METRICS:
            for sample in family.samples:
                labels = [sample.labels[name] for name in METRICS[family.name].labels]
                found[(sample.name.removeprefix("trainpack_"), *labels)] = sample.value
    return found


def test_shows_jobs_queues_leases_and_workers(service: Installation) -> None:
    worker = service.start_worker(host_name="alpha", slots=1)
    running = service.submit("running", labels={"merge": "hold"})
    service.held("merge", output="running")
    for number in range(2):
        service.submit(f"queued-{number}", template="merge")
    cancelled = service.submit("cancelled", template="merge")
    service.client.cancel(cancelled.id)

    now = scrape(service.client)
    assert now["redis_up",] == 1
    assert now["jobs", "running", "merge_quantize"] == 1
    assert now["jobs", "queued", "merge"] == 2
    assert now["jobs", "cancelled", "merge"] == 1
    assert now["jobs", "failed", "merge"] == 0
    assert now["queue_stages", "packaging.io"] == 2
    assert now["queue_stages", "packaging.host.alpha"] == 0
    assert now["queue_oldest_seconds", "packaging.host.alpha"] == 0
    assert now["queue_workers", "packaging.heavy"] == 1
    assert now["leases",] == 1
    assert now["leases_overdue",] == 0
    assert now["workers", "alpha", "false"] == 1
    assert now["slots",] == 1
    assert now["callbacks_pending",] == 0
    oldest = now["queue_oldest_seconds", "packaging.io"]
    eventually(lambda: scrape(service.client)["queue_oldest_seconds", "packaging.io"] > oldest, "the wait grows")
    families = {family.name for family in text_string_to_metric_families(metrics_text(service.client).decode())}
    assert {row.name for row in METRICS.values() if row.exporter is Exporter.CONSOLE} <= families

    service.let_go("merge", "running")
    service.wait(running)
    worker.kill()


def test_a_lost_message_makes_a_stage_no_younger(service: Installation) -> None:
    service.submit()
    [queue] = [q for q in service.client.queues() if q.due]
    assert (queue.name, queue.waiting, queue.due) == ("packaging.io", 1, 1)
    for key in service.redis.scan_iter(f"{service.prefix}:broker:*"):
        service.redis.delete(key)
    age = queue.oldest_s or 0.0
    [queue] = [q for q in service.client.queues() if q.due]
    assert (queue.waiting, queue.due) == (0, 1)
    assert (queue.oldest_s or 0.0) >= age


def test_a_delayed_stage_is_not_waiting_yet(service: Installation) -> None:
    service.start_worker(retry_base_s=60, retry_max_s=60)
    service.submit(labels={"prepare": "transient:1"})
    eventually(lambda: scrape(service.client)["stages_delayed",] == 1, "the retry is delayed")
    assert [q.due for q in service.client.queues()] == [0, 0, 0]


def test_without_redis_it_says_so() -> None:
    with PackagingClient("redis://127.0.0.1:1/0", timeout_s=0.2) as client:
        assert scrape(client) == {("redis_up",): 0}


def test_ten_thousand_jobs_make_a_scrape_no_dearer(service: Installation) -> None:
    service.submit("one")
    few = commands_of_a_scrape(service)
    pipe = service.redis.pipeline(transaction=False)
    for number in range(10_000):
        pipe.sadd(service.keys.template_index("succeeded", "merge_quantize"), f"job-{number}")
    pipe.execute()
    assert scrape(service.client)["jobs", "succeeded", "merge_quantize"] == 10_000
    assert commands_of_a_scrape(service) == few


def commands_of_a_scrape(service: Installation) -> int:
    """Commands that one scrape sends: the least of some, since workers of other tests use the server as well."""
    return min(_commands_meanwhile(service) for _ in range(5))


def _commands_meanwhile(service: Installation) -> int:
    """Those that a scrape and whoever else sends; the connection that counts them adds the same each time."""
    before = service.redis.info("commandstats")
    metrics_text(service.client)
    after = service.redis.info("commandstats")
    names = ("cmdstat_scard", "cmdstat_zcard", "cmdstat_zcount", "cmdstat_llen", "cmdstat_hget", "cmdstat_smembers")
    return sum(after.get(n, {"calls": 0})["calls"] - before.get(n, {"calls": 0})["calls"] for n in names)
