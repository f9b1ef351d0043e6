"""A worker has the common kernels compiled beside it, and neither waits for that nor is survived by it."""

from __future__ import annotations

import psutil

from tests.integration.harness import Installation, eventually
from worker.models.kernels.precompile import main as precompile


def warm_ups(service: Installation) -> list[psutil.Process]:
    return [each for each in service.stage_processes() if "worker.kernels.precompile" in each.cmdline()]


def test_a_worker_is_ready_before_its_kernels_and_takes_them_along(service: Installation) -> None:
    worker = service.start_worker(warm_up=True)
    [process] = eventually(lambda: warm_ups(service), "kernels are being compiled")
    assert "kernels_warmed" not in worker.lines
    [seen] = service.client.workers()
    assert not seen.torch_loaded
    eventually(lambda: process.nice() == 19, "it steps back")
    worker.kill()
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "it ends with the worker")


def test_a_worker_fills_a_cache_and_stops_without_complaint(service: Installation) -> None:
    cache = service.directory / "kernels"
    assert precompile(["--cache", str(cache), "--types", "Q8_0"]) == 0
    before = {path.name for path in cache.iterdir()}
    worker = service.start_worker(warm_up=True, kernel_cache_dir=cache)
    eventually(lambda: len(list(cache.iterdir())) > len(before), "more kernels beside those that were there")
    assert worker.stop() == 0
    assert "kernels_not_warmed" not in worker.lines
