"""Reading ``nvidia-smi``. There is no GPU in CI: a program that answers as it does stands in."""

from __future__ import annotations

from pathlib import Path

from worker.service.metrics.gpus import GpuProbe, GpuUse, parse_gpus


def test_reads_figures_in_base_units() -> None:
    text = "0, NVIDIA A100-SXM4-80GB, 37, 1024, 81920\n1, NVIDIA H100, MIG, [N/A], [N/A], 81559\nrubbish\n"
    text = text.replace("H100, MIG,", "H100,")
    assert parse_gpus(text) == [
        GpuUse("0", "NVIDIA A100-SXM4-80GB", 0.37, 2**30, 80 * 2**30),
        GpuUse("1", "NVIDIA H100", None, None, 81559 * 2**20),
    ]


def program(directory: Path, text: str) -> str:
    path = directory / "smi"
    path.write_text(f"#!/bin/sh\necho called >> {directory}/calls\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_is_asked_once_for_many_scrapes(tmp_path: Path) -> None:
    probe = GpuProbe(program(tmp_path, "echo '0, X, 100, 1, 2'"))
    assert [gpu.utilization for gpu in probe.read() + probe.read()] == [1.0, 1.0]
    assert (tmp_path / "calls").read_text().count("called") == 1


def test_a_failing_program_gives_no_figures(tmp_path: Path) -> None:
    assert GpuProbe(program(tmp_path, "exit 9")).read() == []
    assert GpuProbe("no-such-program").read() == []
