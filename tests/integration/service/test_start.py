"""The start of a worker: all of its parts, or none."""

from __future__ import annotations

import pytest

from tests.integration.failing_worker import PARTS
from tests.integration.harness import BOUND_S, Installation, eventually


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_cannot_start_leaves_none_of_the_others_behind(
    service: Installation, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setenv("FAILING_PART", part)
    worker = service.start_worker(
        wait=False,
        module="tests.integration.failing_worker",
        callback_secret="a secret that both sides hold",
        metrics_port=0,
    )
    assert worker.process.wait(BOUND_S) == 1, worker.lines
    assert "can't start new thread" in worker.lines
    assert "threads left: ['MainThread']" in worker.lines
    assert service.client.workers() == []
    eventually(lambda: not service.stage_processes(), "no process left over")
