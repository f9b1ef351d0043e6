"""Redis does what it was asked and the answer never arrives: asking again has one effect, and the same answer."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from api_client import AttemptOutcome, JobState, StageName
from api_client.scripts import Script
from tests.integration.harness import BOUND_S, Installation, outcomes
from worker.state.transitions import Begun, Ignored, Transitions, new_token

PLAN = ["prepare", "merge", "convert", "quantize", "verify", "publish"]


class Deaf:
    """A way to Redis that loses its connection instead of the first answer to a script with one of some arguments."""

    def __init__(self, url: str, arguments: list[bytes]) -> None:
        self._upstream = ("127.0.0.1", int(urlsplit(url).port or 0))
        self._to_lose = list(arguments)
        self.lost: list[bytes] = []
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Once nobody is connected any more."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(near,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._upstream) as far:
            losing = False
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    try:
                        data = ready.recv(1 << 16)
                    except OSError:
                        return
                    if not data or (ready is far and losing):
                        return
                    losing = losing or (ready is near and self._loses(data))
                    (far if ready is near else near).sendall(data)

    def _loses(self, data: bytes) -> bool:
        with self._lock:
            for argument in self._to_lose:
                if argument in data and b"EVALSHA" in data:
                    self._to_lose.remove(argument)
                    self.lost.append(argument)
                    return True
        return False


@pytest.fixture
def deaf(valkey: str) -> Iterator[Deaf]:
    # Only the taking of a lease names the stage so, and the pin after the host.
    found = Deaf(valkey, [f'"stage": "{stage}", "attempt": 1, "token"'.encode() for stage in PLAN])
    yield found
    found.close()


@pytest.mark.fault("the answer to the taking of the lease is lost")
def test_a_lease_whose_answer_was_lost_is_used(deaf: Deaf, service: Installation) -> None:
    service.start_worker(redis_url=deaf.url)
    job = service.submit(labels=dict.fromkeys(PLAN, "noisy:1"))
    done = service.wait(job)
    service.assert_settled(done)
    assert {stage: outcomes(done, stage) for stage in PLAN} == {stage: [AttemptOutcome.SUCCEEDED] for stage in PLAN}
    assert len(deaf.lost) == len(PLAN)


def test_a_lease_is_taken_once_by_one_token(service: Installation) -> None:
    job = service.submit()
    hand = Transitions(service.redis, service.keys, 30)

    def take(token: str) -> Begun | Ignored:
        return hand.begin(job.id, StageName.PREPARE, 1, worker="w", host="h", pin=True, limits={}, token=token)

    token = new_token(1)
    first = take(token)
    assert isinstance(first, Begun)
    assert first.previous_host == ""
    assert take(token) == first
    assert isinstance(take(new_token(1)), Ignored)
    assert len(service.client.get(job.id).stage(StageName.PREPARE).attempts) == 1


def test_a_cancel_whose_answer_was_lost_may_be_sent_again(service: Installation) -> None:
    job = service.submit()
    cancel = Script(service.redis, service.prefix, "api_client.lua", "cancel")
    assert cancel(id=job.id, nonce="n") == ["cancelled"]
    assert cancel(id=job.id, nonce="n") == ["cancelled"]
    assert cancel(id=job.id, nonce="another") == ["finished", "cancelled"]
    assert service.messages(job.id).count("Job cancelled") == 1


def test_a_replay_whose_answer_was_lost_may_be_sent_again_even_when_the_job_has_ended_since(
    service: Installation,
) -> None:
    job = service.submit()
    service.client.cancel(job.id)
    replay = Script(service.redis, service.prefix, "api_client.lua", "replay")
    first = replay(id=job.id, from_stage="", nonce="n")
    assert first[0] == "queued"
    service.client.cancel(job.id)
    assert replay(id=job.id, from_stage="", nonce="n") == first
    assert service.client.get(job.id).state is JobState.CANCELLED
    assert sum(text.startswith("Job replayed") for text in service.messages(job.id)) == 1
