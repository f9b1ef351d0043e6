"""Every server that a package gives keeps all jobs over a restart under the shipped ACL file; others are named."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from redis import Redis

from config.settings import load_settings
from tests.integration.harness import Installation, eventually
from tests.integration.servers import ACL_FILE, PERSISTENCE, SERVERS, Server, server, shipped_acl, synced
from worker.local.doctor import Check, check_redis

pytestmark = pytest.mark.integration
JOBS = 5
WITHOUT_RIGHTS = ACL_FILE.read_text().replace("user default off ~* &* +@all", "user default off")


def jobs_after(restarted: Server, directory: Path, end: signal.Signals) -> tuple[list[str], list[str]]:
    """Ids of jobs submitted before the server ended, and of those listed once it is back."""
    service = Installation(restarted.url(), directory, prefix="trainpack")
    try:
        sent = [service.submit(f"out{number}", idempotency_key=f"k{number}") for number in range(JOBS)]
        if end is signal.SIGKILL:
            synced(restarted.url())
        restarted.end(end)
        restarted.start()
        return sorted(job.id for job in sent), sorted(job.id for job in service.client.list())
    finally:
        service.close()


def said_of(url: str, directory: Path) -> Check:
    return check_redis(load_settings({}, redis_url=url, home=directory))


ENDS = [(kept, signal.SIGTERM) for kept in PERSISTENCE] + [("aof", signal.SIGKILL), ("both", signal.SIGKILL)]
"""Snapshots alone keep only what was there at the last one, which doctor says."""


@pytest.mark.parametrize(("kept", "end"), ENDS)
@pytest.mark.parametrize("name", SERVERS)
def test_no_job_is_lost_by_a_restart(name: str, kept: str, end: signal.Signals, tmp_path: Path) -> None:
    with server(name, tmp_path / "data", acl=shipped_acl(), options=PERSISTENCE[kept]) as started:
        before, after = jobs_after(started, tmp_path, end)
        assert after == before
        assert "ACLs rules changed" not in started.log


@pytest.mark.parametrize("name", SERVERS)
def test_a_job_that_waited_over_a_restart_is_run(name: str, tmp_path: Path) -> None:
    with server(name, tmp_path / "data", acl=shipped_acl(), options=PERSISTENCE["both"]) as started:
        service = Installation(started.url(), tmp_path, prefix="trainpack")
        try:
            job = service.submit()
            started.end()
            started.start()
            service.start_worker()
            service.assert_settled(service.wait(job))
        finally:
            service.close()


@pytest.mark.parametrize("name", SERVERS)
def test_doctor_takes_the_shipped_file_with_an_append_only_file_alone(name: str, tmp_path: Path) -> None:
    for kept, options in PERSISTENCE.items():
        with server(name, tmp_path / kept, acl=shipped_acl(), options=options) as started:
            check = said_of(started.url(), tmp_path)
            assert check.ok is (kept != "rdb"), check
            assert ("since the last snapshot" in check.remedy) is (kept == "rdb")
    nothing = ("--appendonly", "no", "--save", "")
    with server(name, tmp_path / "none", acl=shipped_acl(), options=nothing) as started:
        assert "loses all jobs" in said_of(started.url(), tmp_path).remedy


def test_doctor_refuses_a_server_that_would_drop_every_job_for_its_default_user(tmp_path: Path) -> None:
    """Debian's, with the file as it was shipped before; the test shows first that the jobs are really gone."""
    with server("redis-server", tmp_path / "old", acl=shipped_acl(WITHOUT_RIGHTS), options=PERSISTENCE["aof"]) as old:
        check = said_of(old.url(), tmp_path)
        before, after = jobs_after(old, tmp_path, signal.SIGTERM)
    assert (len(before), after) == (JOBS, [])
    assert not check.ok
    assert "which may not write" in check.remedy
    assert "user default off ~* &* +@all" in check.remedy
    silent = WITHOUT_RIGHTS.replace("+acl|dryrun", "")
    with server("redis-server", tmp_path / "mute", acl=shipped_acl(silent), options=PERSISTENCE["aof"]) as mute:
        assert "+acl|dryrun" in said_of(mute.url(), tmp_path).remedy


def test_doctor_takes_the_same_of_a_server_that_does_not_ask_while_it_loads(tmp_path: Path) -> None:
    with server("bundled", tmp_path / "new", acl=shipped_acl(WITHOUT_RIGHTS), options=PERSISTENCE["aof"]) as new:
        assert said_of(new.url(), tmp_path).ok
        before, after = jobs_after(new, tmp_path, signal.SIGTERM)
    assert after == before


@pytest.mark.parametrize("name", SERVERS)
def test_doctor_says_what_the_server_could_not_write(name: str, tmp_path: Path) -> None:
    options = (*PERSISTENCE["both"], "--enable-protected-configs", "yes", "--stop-writes-on-bgsave-error", "no")
    with server(name, tmp_path / "data", acl=None, options=options) as started:
        client = Redis.from_url(url := f"redis://127.0.0.1:{started.port}/0", decode_responses=True)
        client.config_set("appendfsync", "no")
        assert "appendfsync is no" in said_of(url, tmp_path).remedy
        client.config_set("appendfsync", "everysec")
        assert said_of(url, tmp_path).ok
        (gone := tmp_path / "gone").mkdir()
        client.config_set("dir", str(gone))
        gone.rmdir()
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot failed")
        assert "snapshot could not be written" in said_of(url, tmp_path).remedy
        client.close()
