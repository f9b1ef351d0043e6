"""A machine that gives the check no processor says nothing of the file; a check that has had its time is ended."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import psutil
import pytest

from worker.models.verify import load
from worker.models.verify.ask import Question

BUSY = "import time\nwhile time.process_time() < {}: pass\nprint('done')"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[psutil.Process]:
    """Processes that were started in place of the one that asks; each needs a second of a processor."""
    started: list[psutil.Process] = []
    real = subprocess.Popen

    def start(_: list[str], **options: object) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = real([sys.executable, "-c", BUSY.format(1)], **options)  # type: ignore[call-overload]
        started.append(psutil.Process(process.pid))
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def test_a_process_that_gets_no_processor_is_waited_for(asked: list[psutil.Process]) -> None:
    def freeze() -> None:
        while not asked:
            time.sleep(0.01)
        asked[0].suspend()
        time.sleep(4)
        asked[0].resume()

    thread = threading.Thread(target=freeze)
    thread.start()
    try:
        assert load._asked(Question(model="any"), 2.0).stdout == "done\n"
    finally:
        thread.join()


def test_a_process_that_has_had_its_time_is_ended(asked: list[psutil.Process]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        load._asked(Question(model="any"), 0.1)
    assert not asked[0].is_running()
