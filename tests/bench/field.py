"""Every architecture through a whole job on its smallest model; writes the table of ``docs/architectures.md``.

``python -m tests.bench field [--again] [ARCHITECTURE ...]`` takes the named architectures, or all of them, each in a
process of its own, and keeps what it finds in ``.cache/field.jsonl`` as it goes: what is there already is not tried
again, so that a run that was cut off goes on. ``--again`` begins anew. The table is written once all are known.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import transformers

from tests.bench.tables import ROOT
from tests.field.architectures import all_architectures
from tests.field.cells import BUILT, COLUMNS, UNCAUGHT, cells
from tests.field.page import shown, write_page
from worker.models.convert.upstream import load_upstream

RESULTS = ROOT / ".cache" / "field.jsonl"
_LIMIT_S = 150.0


def known() -> dict[str, dict[str, str]]:
    """Architecture -> column -> outcome, of this run and those before it; the last word counts."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    return {row["architecture"]: row["cells"] for row in rows}


def try_one(architecture: str) -> dict[str, str]:
    """The cells, found in a process of its own, which ends at a time limit."""
    mine, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send_cells, args=(architecture, theirs))
    child.start()
    theirs.close()
    try:
        if mine.poll(_LIMIT_S):
            found: dict[str, str] = mine.recv()
            return found
        return {BUILT: f"{UNCAUGHT}: not done after {_LIMIT_S:.0f} s"}
    except EOFError:
        child.join()
        return {BUILT: f"{UNCAUGHT}: its process ended with {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def _send_cells(architecture: str, to: Connection) -> None:
    os.setpgid(0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        to.send(cells(architecture, Path(scratch)))


def main(arguments: list[str]) -> None:
    """Try the architectures; write the page where all are known."""
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    if again := "--again" in arguments:
        arguments.remove("--again")
    RESULTS.parent.mkdir(exist_ok=True)
    if again and not arguments:
        RESULTS.unlink(missing_ok=True)
    load_upstream()  # before the first fork, so that each process has it
    done = {} if again else known()
    for name in arguments or all_architectures():
        if name in done:
            continue
        started = time.monotonic()
        found = try_one(name)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"architecture": name, "cells": found}) + "\n")
        told = (shown(found.get(column, "-")) for column in COLUMNS)
        print(f"{time.monotonic() - started:5.1f} s", name, *told, sep=" | ", flush=True)
    if not arguments:
        outcomes = known()
        write_page({name: outcomes[name] for name in all_architectures()})


if __name__ == "__main__":
    main(sys.argv[1:])
