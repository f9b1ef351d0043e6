"""A submit that waits for the disk or a replica survives the server's machine; where one cannot tell, it is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api_client import ErrorCode, PackagingClient, PackagingError
from tests.bench.kept import Kept, cut_after_answers, options, some_request
from tests.integration.harness import eventually
from tests.integration.power import cut_power, powered, sync_library
from tests.integration.servers import Server, program

pytestmark = pytest.mark.integration
AT_ONCE = 10
CUTS_EACH = 2


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers whose power can be cut; none is started yet."""
    library, made = sync_library(tmp_path), list[Server]()

    def make(name: str, fsync: str = "everysec", *more: str) -> Server:
        (directory := tmp_path / f"server-{len(made)}").mkdir()
        made.append(powered(Server(program(name), directory, (*options(fsync), *more)), library))
        return made[-1]

    yield make
    for server in made:
        server.end()


def url_of(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


def cut_many(servers: list[Server], wait: str, cuts: int) -> Kept:
    total = Kept()
    with ThreadPoolExecutor(len(servers)) as pool:
        for part in pool.map(lambda server: cut_after_answers(server, wait, cuts), servers):
            total += part
    return total


@pytest.mark.parametrize("name", ["bundled", "redis-server"])
def test_no_submit_that_waited_for_the_disk_is_lost_with_the_power(
    name: str, new_server: Callable[..., Server]
) -> None:
    kept = cut_many([new_server(name) for _ in range(AT_ONCE)], "disk", CUTS_EACH)
    assert (kept.answered, kept.lost) == (AT_ONCE * CUTS_EACH, 0)


def test_the_cut_takes_submits_that_did_not_wait(new_server: Callable[..., Server]) -> None:
    servers = [new_server("bundled") for _ in range(4)]
    if not servers[0].environment:
        pytest.skip("no C compiler: a kill alone takes nothing")
    assert cut_many(servers, "none", 2).lost > 0


def test_a_server_that_syncs_before_each_answer_keeps_submits_at_once(new_server: Callable[..., Server]) -> None:
    kept = cut_many([new_server("redis-server", "always") for _ in range(4)], "disk", 2)
    assert (kept.answered, kept.lost) == (8, 0)
    assert min(kept.times_s) < 1


def test_a_job_that_a_cut_took_before_it_was_confirmed_is_stored_again(new_server: Callable[..., Server]) -> None:
    (server := new_server("bundled")).start()
    with PackagingClient(url_of(server), submit_wait="disk", timeout_s=20) as client, ThreadPoolExecutor() as pool:
        answer = pool.submit(client.submit, some_request(server.directory))
        eventually(client.list, "the job is stored")
        (first,) = client.list()
        cut_power(server)
        server.start()
        job = answer.result()
        assert [found.id for found in client.list()] == [job.id]
        if server.environment:
            assert job.id != first.id


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--appendonly", "no"), "appendonly is not yes"),
        (("--appendfsync", "no"), "appendfsync is no"),
        (("--no-appendfsync-on-rewrite", "yes"), "no-appendfsync-on-rewrite is yes"),
    ],
)
def test_a_server_that_cannot_confirm_stores_nothing(
    more: tuple[str, ...], reason: str, new_server: Callable[..., Server]
) -> None:
    (server := new_server("redis-server", "everysec", *more)).start()
    with PackagingClient(url_of(server), submit_wait="disk") as client:
        with pytest.raises(PackagingError) as caught:
            client.submit(some_request(server.directory))
        assert caught.value.code is ErrorCode.SUBMIT_WAIT_UNSUPPORTED
        assert reason in caught.value.message
        assert client.list() == []


def test_a_submit_waits_for_a_replica_and_says_where_there_is_none(new_server: Callable[..., Server]) -> None:
    (primary := new_server("bundled")).start()
    replica = new_server("bundled", "everysec", "--replicaof", f"127.0.0.1 {primary.port}")
    request = some_request(primary.directory)
    with PackagingClient(url_of(primary), submit_wait="replica", timeout_s=2) as client:
        with pytest.raises(PackagingError) as alone:
            client.submit(request)
        assert alone.value.code is ErrorCode.SUBMIT_WAIT_UNSUPPORTED
        replica.start()
        eventually(lambda: "sync: Finished with success" in replica.log, "the replica follows")
        job = client.submit(request)
        with PackagingClient(url_of(replica)) as other:
            assert other.get(job.id).id == job.id
        replica.end()
        started = time.monotonic()
        with pytest.raises(PackagingError) as gone:
            client.submit(request)
        assert gone.value.code is ErrorCode.SUBMIT_UNCONFIRMED
        assert time.monotonic() - started < 5
        assert client.get(gone.value.fields["job_id"]).state == "queued"


def test_the_setting_is_read_from_the_environment_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINPACK_SUBMIT_WAIT", "disc")
    with pytest.raises(PackagingError, match="'disc' is none of none, disk, replica") as caught:
        PackagingClient("redis://127.0.0.1:1/0")
    assert caught.value.code is ErrorCode.SETTINGS_INVALID
