"""Users of ``roles.acl.in`` beside the workers': each against every key there is, by a real server, and at its work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from api_client import PackagingClient, PackagingError
from api_client.ledger import keys
from api_client.ledger.asking import QuestionKind
from tests.integration.harness import ROOT, Installation, eventually
from tests.integration.servers import PASSWORD, PERSISTENCE, Server, server, shipped_acl

pytestmark = pytest.mark.integration

ROLES = ROOT / "deploy" / "compose" / "roles.acl.in"
SENDERS = ("trainpack-producer", "trainpack-console")
OBSERVER = "trainpack-observer"
ID = "20261129-120000-abcdef"

FROM_PRODUCERS = {
    "P:{ID}:job", "P:{ID}:stages", "P:{ID}:attempts", "P:{ID}:events", "P:jobs", "P:jobs:state:STATE",
    "P:jobs:state:STATE:NAME", "P:jobs:templates", "P:jobs:tasks", "P:jobs:tasks:at",
    "P:jobs:label:K=V", "P:idempotency:KEY", "P:expiry", "P:sent",
    "P:wake", "P:due:QUEUE", "P:pinned:HOST", "P:waiting:K=V", "P:held:REASON", "P:fair:PRIORITY:VALUE", "P:turns",
    "P:turns:PRIORITY", "P:callbacks", "P:questions",
    "P:question:QID", "P:answer:QID", "P:broker:packaging.io",
    "P:broker:packaging.host.h", "P:broker:_kombu.binding.packaging.io",
}  # fmt: skip
"""What submitting, cancelling, replaying and asking write."""
FROM_WORKERS = {
    "P:leases", "P:running:K=V", "P:workers", "P:worker:NAME", "P:hosts", "P:scratch:HOST", "P:templates", "P:config",
    "P:figures:ARCH", "P:clock", "P:reaper", "P:broker:unacked", "P:broker:unacked_index", "P:broker:unacked_mutex",
}  # fmt: skip
"""What workers act on: nobody else writes it."""
FROM_CONSOLE = {"P:limits", "P:fairness", "P:paused", "P:audit"}
"""What operators change: the console writes it, producers do not."""
WRITERS = {
    "trainpack-producer": FROM_PRODUCERS,
    "trainpack-console": FROM_PRODUCERS | FROM_CONSOLE,
    OBSERVER: set[str](),
}


def roles() -> str:
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    return re.sub(r"@[A-Z]+_SHA256@", digest, ROLES.read_text())


@pytest.fixture(scope="module", params=["bundled", "redis-server"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("guarded")
    with server(request.param, directory, acl=shipped_acl() + roles(), options=PERSISTENCE["aof"]) as started:
        yield started


def may(client: Any, *command: str) -> bool:
    try:
        client.execute_command(*command)
    except NoPermissionError:
        return False
    except ResponseError as error:  # a script's, which has no class of its own
        if "ACL failure in script" in str(error) or "can't access" in str(error):
            return False
        raise
    return True


def real_name(pattern: str) -> str:
    return pattern.replace("P:", "trainpack:", 1).replace("ID", ID)


def test_every_key_of_the_map_is_someone_s() -> None:
    mapped = set(re.findall(r"^    (P:\S+) ", str(keys.__doc__), flags=re.MULTILINE)) - {"P:broker:*"}
    known = {name for name in FROM_PRODUCERS | FROM_WORKERS | FROM_CONSOLE if not name.startswith("P:broker:")}
    assert known == mapped


@pytest.mark.parametrize("user", [*SENDERS, OBSERVER])
def test_who_may_read_and_write_each_key(user: str, guarded: Server) -> None:
    client = Redis.from_url(guarded.url(user))
    for pattern in sorted(FROM_PRODUCERS | FROM_WORKERS | FROM_CONSOLE):
        name = real_name(pattern)
        assert may(client, "TYPE", name), name
        assert may(client, "DEL", name) is (pattern in WRITERS[user]), name
        script = ("EVAL", "return redis.call('DEL', ARGV[1])", "0", name)
        allowed = may(client, *script) if user in SENDERS else False
        assert allowed is (pattern in WRITERS[user]), f"by a script: {name}"
    client.close()


@pytest.mark.parametrize("user", [*SENDERS, OBSERVER])
def test_nobody_reaches_beyond_the_prefix_or_the_server(user: str, guarded: Server) -> None:
    client = Redis.from_url(guarded.url(user))
    refused = (
        ("GET", "another"), ("SET", "another", "1"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "save", ""),
        ("SHUTDOWN",), ("MONITOR",), ("ACL", "GETUSER", "trainpack"), ("CLIENT", "KILL", "ID", "1"),
        ("PUBLISH", "trainpack:broker:/0.celery.pidbox", "{}"), ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"),
        ("REPLICAOF", "NO", "ONE"), ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"),
    )  # fmt: skip
    for command in refused:
        assert not may(client, *command), command
    client.close()


@pytest.mark.parametrize("user", SENDERS)
def test_jobs_are_sent_stopped_and_replayed_by_who_may(user: str, guarded: Server, tmp_path: Path) -> None:
    service = Installation(guarded.url(), tmp_path, prefix="trainpack", settings={"seal_key": "a-key-of-the-workers"})
    sender = PackagingClient(guarded.url(user))
    observer = PackagingClient(guarded.url(OBSERVER))
    try:
        service.start_worker()
        job = sender.submit(service.request(labels={"team": "a"}, idempotency_key=f"key of {user}"))
        assert service.redis.zscore("trainpack:sent", f"{job.id}|prepare") is not None or sender.get(job.id).started_at
        service.assert_settled(sender.wait(job.id, 25))
        sender.replay(job.id, from_stage="quantize")
        service.assert_settled(sender.wait(job.id, 25))
        held = sender.submit(service.request("held", labels={"convert": "hold"}))
        service.held("convert", output="held")
        sender.cancel(held.id)
        assert sender.wait(held.id, 25).state == "cancelled"
        assert sender.ask(QuestionKind.SPACE, {"path": str(tmp_path)}, 10)["host"]
        assert sender.ping().warnings == ()

        assert observer.ping().warnings == ()
        assert {found.id for found in observer.list()} >= {job.id, held.id}
        assert observer.workers()
        assert observer.queues()
        assert len(list(observer.events(job.id))) > 10
        with pytest.raises(PackagingError) as refused:
            observer.cancel(job.id)
        assert refused.value.code == "redis_denied"
    finally:
        sender.close()
        observer.close()
        eventually(lambda: not service.redis.zcard("trainpack:leases"), "nothing runs")
        service.close()


def test_a_message_of_a_producer_arrives_at_once(guarded: Server, tmp_path: Path) -> None:
    """Not only when a worker finds that it is overdue."""
    service = Installation(guarded.url("trainpack-producer"), tmp_path, prefix="trainpack")
    watcher = Redis.from_url(guarded.url(), decode_responses=True)
    before = sum(watcher.llen(name) for name in watcher.scan_iter("trainpack:broker:packaging.io*"))
    job = service.submit()
    assert sum(watcher.llen(name) for name in watcher.scan_iter("trainpack:broker:packaging.io*")) == before + 1
    service.client.cancel(job.id)
    watcher.close()
    service.client.close()
    service.redis.close()
