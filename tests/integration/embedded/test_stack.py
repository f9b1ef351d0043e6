from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.address import find_redis_url
from api_client.s3 import make_client
from worker.local.embedded import Stack, StackInfo, read_stack
from worker.local.embedded.ports import choose_ports
from worker.local.embedded.processes import ProcessId
from worker.local.embedded.state import write_stack
from worker.local.embedded.workers import GRACE_S, WorkerProgram

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

HERE = Path(__file__).parent
BOUND_S = 30


def processes_of(stack: Stack) -> list[psutil.Process]:
    return [psutil.Process(process.pid) for process in stack.info.services.values()]


def processes_under(home: Path) -> list[psutil.Process]:
    """Processes that work in a home; the servers and workers of its stack do."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; a zombie whose new parent has not yet asked for its status does not."""
    return [each for each in processes if status(each) not in (None, psutil.STATUS_ZOMBIE)]


def status(process: psutil.Process) -> str | None:
    try:
        return process.status() if process.is_running() else None
    except psutil.NoSuchProcess:
        return None


def s3(info: StackInfo, **changes: Any) -> S3Client:
    return make_client(info.storage().model_copy(update=changes))


@contextmanager
def owner_process(home: Path) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A separate process that owns the stack of ``home``, and what it said."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "owner.py"), str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def fake_worker(directory: Path, mode: str, grace_s: float = GRACE_S, **settings: Any) -> Stack:
    def serving(_redis_url: str) -> frozenset[int]:
        return frozenset(int(path.name.split("-")[1]) for path in directory.glob("serving-*"))

    command = (sys.executable, str(HERE / "fake_worker.py"), str(directory), mode)
    return Stack(directory / "home", program=WorkerProgram(command, serving, grace_s), **settings)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), workers=0) as stack:
        yield stack


class TestARunningStack:
    def test_valkey_keeps_everything_and_asks_for_its_password(self, running: Stack) -> None:
        with redis.Redis.from_url(running.info.redis_url, decode_responses=True) as client:
            config = client.config_get("appendonly", "maxmemory-policy", "save", "bind")
            assert config == {
                "appendonly": "yes",
                "maxmemory-policy": "noeviction",
                "save": "",
                "bind": "127.0.0.1",
            }
            port = client.connection_pool.connection_kwargs["port"]
        with redis.Redis(port=port) as anonymous, pytest.raises(redis.AuthenticationError):
            anonymous.ping()

    def test_the_bucket_is_there_and_strangers_are_kept_out(self, running: Stack) -> None:
        client = s3(running.info)
        client.put_object(Bucket="trainpack", Key="a/b.txt", Body=b"x")
        assert client.get_object(Bucket="trainpack", Key="a/b.txt")["Body"].read() == b"x"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{running.info.endpoint_url}/trainpack/a/b.txt")

    def test_the_inner_http_servers_do_not_give_objects_away(self, running: Stack) -> None:
        filer = running._seaweed_ports["filer"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{filer}/buckets/trainpack/")

    def test_uploads_do_not_make_up_buckets(self, running: Stack) -> None:
        client = s3(running.info)
        with pytest.raises(client.exceptions.ClientError):
            client.put_object(Bucket="misspelt", Key="x", Body=b"x")

    def test_nothing_listens_beyond_loopback(self, running: Stack) -> None:
        listening = [
            connection.laddr.ip
            for process in processes_of(running)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 9
        assert set(listening) == {"127.0.0.1"}

    def test_secrets_are_readable_by_their_owner_only_and_in_no_command_line(self, running: Stack) -> None:
        info = running.info
        files = ["stack.json", "secrets.json", "valkey/valkey.conf", "seaweedfs/s3.json"]
        assert {name: oct((running.home / name).stat().st_mode & 0o777) for name in files} == dict.fromkeys(
            files, "0o600"
        )
        for name in ("valkey", "seaweedfs", "logs"):
            assert (running.home / name).stat().st_mode & 0o077 == 0
        password = info.redis_url.removeprefix("redis://:").split("@")[0]
        said = " ".join(" ".join(process.cmdline()) for process in processes_of(running)) + repr(info)
        assert not [secret for secret in (password, info.access_key, info.secret_key) if secret in said]

    def test_other_commands_find_it(self, running: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
        assert read_stack(running.home) == running.info
        monkeypatch.delenv("TRAINPACK_REDIS_URL", raising=False)
        monkeypatch.setenv("TRAINPACK_HOME", str(running.home))
        assert find_redis_url() == running.info.redis_url
        assert running.environment()["TRAINPACK_S3_ENDPOINT_URL"] == running.info.endpoint_url

    def test_a_second_start_uses_it_and_leaves_it_running(self, running: Stack) -> None:
        with Stack(running.home, workers=3) as second:
            assert not second.owned
            assert second.info == running.info
        assert read_stack(running.home) == running.info


def test_a_stop_leaves_no_process_and_the_data_for_the_next_start_on_other_ports(tmp_path: Path) -> None:
    stack = Stack(tmp_path, workers=0)
    first = stack.start()
    with redis.Redis.from_url(first.redis_url) as client:
        client.set("job", "42")
    s3(first).put_object(Bucket="trainpack", Key="out.gguf", Body=b"GGUF")
    processes = processes_of(stack)
    stack.stop()
    assert not [process for process in processes if process.is_running()]
    assert read_stack(tmp_path) is None
    assert not (tmp_path / "stack.json").exists()
    assert not [port for port in stack._seaweed_ports.values() if list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))]

    taken = [int(address.rpartition(":")[2].removesuffix("/0")) for address in (first.redis_url, first.endpoint_url)]
    with (
        socket.create_server(("127.0.0.1", taken[0])),
        socket.create_server(("127.0.0.1", taken[1])),
        Stack(tmp_path, workers=0) as again,
    ):
        assert again.info.endpoint_url != first.endpoint_url
        assert again.info.secret_key == first.secret_key
        with redis.Redis.from_url(again.info.redis_url) as client:
            assert client.get("job") == b"42"
        assert s3(again.info).get_object(Bucket="trainpack", Key="out.gguf")["Body"].read() == b"GGUF"


def test_of_two_that_start_at_once_one_starts_and_both_serve(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (_, one), owner_process(tmp_path) as (_, two):
        assert sorted([one["owned"], two["owned"]]) == [False, True]
        assert one["services"] == two["services"]


def test_interrupting_the_owner_ends_everything(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (process, state):
        services = [psutil.Process(pid) for pid in (*state["services"].values(), state["guard"])]
        process.send_signal(signal.SIGINT)
        process.wait(BOUND_S)
        assert process.returncode != 0
        assert alive(services) == []
    assert not (tmp_path / "stack.json").exists()


def test_killing_the_owner_ends_everything_and_the_next_start_waits_for_that(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (process, state):
        services = [psutil.Process(pid) for pid in (*state["services"].values(), state["guard"])]
        process.kill()
        process.wait(BOUND_S)
        assert read_stack(tmp_path) is None
        with Stack(tmp_path, workers=0) as stack:
            assert stack.owned
            assert alive(services) == [], "the guard had given up the lock last"


def test_leftovers_of_a_killed_owner_and_a_killed_guard_are_ended_by_the_next_start(tmp_path: Path) -> None:
    with owner_process(tmp_path) as (process, state):
        os.kill(state["guard"], signal.SIGKILL)
        process.kill()
        process.wait(BOUND_S)
        services = [psutil.Process(pid) for pid in state["services"].values()]
        assert len(alive(services)) == 2, "nobody is there to end them"
        with Stack(tmp_path, workers=0) as stack:
            assert stack.owned
            assert alive(services) == []


def test_a_state_file_that_names_another_process_is_stale(running: Stack, tmp_path: Path) -> None:
    from dataclasses import replace

    info = replace(running.info, home=tmp_path)
    write_stack(info)
    assert read_stack(tmp_path) == info
    write_stack(replace(info, owner=ProcessId(os.getpid(), info.owner.start_ticks + 1)))
    assert read_stack(tmp_path) is None, "same number, another process"
    (tmp_path / "stack.json").write_text('{"redis_url": "x"}')
    assert read_stack(tmp_path) is None


def test_a_worker_that_fails_fails_the_start_with_its_last_words_and_leaves_nothing(tmp_path: Path) -> None:
    stack = fake_worker(tmp_path, "broken")
    with pytest.raises(PackagingError, match="no such thing as a worker here") as caught:
        stack.start()
    assert caught.value.code is ErrorCode.SERVICE_START_FAILED
    assert caught.value.fields["exit_status"] == 7
    assert not stack.owned
    assert processes_under(stack.home) == []
    assert not (stack.home / "stack.json").exists()


def test_a_server_that_cannot_start_fails_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("in the way")
    with pytest.raises(
        PackagingError, match=r"valkey: ended while starting \(ended with status \d\)(?s:.*)appendonlydir"
    ):
        Stack(tmp_path, workers=0).start()
    assert processes_under(tmp_path) == []


def test_a_worker_that_never_serves_is_given_up_after_the_bound(tmp_path: Path) -> None:
    stack = fake_worker(tmp_path, "silent", worker_timeout_s=1.0)
    with pytest.raises(PackagingError, match="worker-1: not ready after 1 s; last lines of"):
        stack.start()
    assert processes_under(stack.home) == []


def test_workers_end_before_the_servers_and_a_dead_one_is_reported(tmp_path: Path) -> None:
    stack = fake_worker(tmp_path, "obedient", workers=2)
    with stack:
        assert stack.ended() == ()
        psutil.Process(stack.info.services["worker-2"].pid).kill()
        assert stack._processes is not None
        stack._processes.services[-1].process.wait(BOUND_S)
        (dead,) = stack.ended()
        assert (dead.name, dead.exit_status()) == ("worker-2", -signal.SIGKILL)
    assert (tmp_path / "last-words").read_text() == "redis answered True"


def test_a_worker_that_will_not_end_is_killed(tmp_path: Path) -> None:
    stack = fake_worker(tmp_path, "stubborn", grace_s=0.2)
    stack.start()
    worker = psutil.Process(stack.info.services["worker-1"].pid)
    stack.stop()
    assert not worker.is_running()


def test_the_real_worker_serves_when_the_start_returns(tmp_path: Path) -> None:
    from api_client.client import PackagingClient

    with Stack(tmp_path / "home", workers=1) as stack:
        with PackagingClient(stack.info.redis_url) as client:
            (worker,) = client.workers()
            assert client.ping().warnings == ()
        assert worker.pid == stack.info.services["worker-1"].pid
        process = psutil.Process(worker.pid)
        children = process.children(recursive=True)
    assert psutil.wait_procs([process, *children], timeout=BOUND_S)[1] == []


def test_a_port_that_another_stack_held_for_a_moment_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start at once try the same ports; the one that holds a port while it chooses lets it go again."""
    chosen: list[dict[str, int]] = []

    def choose(preferred: Mapping[str, int]) -> dict[str, int]:
        ports = choose_ports(dict.fromkeys(preferred, 0))
        if not chosen:
            ports["s3"] = busy.getsockname()[1]
        else:
            busy.close()
        chosen.append(ports)
        return ports

    monkeypatch.setattr("worker.local.embedded.stack.choose_ports", choose)
    monkeypatch.setattr("worker.local.embedded.stack.is_free", lambda _: True)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        with Stack(tmp_path, workers=0) as stack:
            assert stack.info.endpoint_url.endswith(str(chosen[1]["s3"]))
    assert len(chosen) == 2
