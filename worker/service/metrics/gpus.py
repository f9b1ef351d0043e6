"""Use of the GPUs, from ``nvidia-smi`` where there is one. No GPU library is loaded into the worker."""

from __future__ import annotations

import csv
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass

_FRESH_S = 10.0
_TIMEOUT_S = 5.0
_QUERY = ("index", "name", "utilization.gpu", "memory.used", "memory.total")
_MIB = 2**20


@dataclass(frozen=True)
class GpuUse:
    """One GPU. ``None`` stands for what the driver does not say (it answers ``[N/A]``)."""

    index: str
    model: str
    utilization: float | None
    """0 to 1."""
    used_bytes: float | None
    total_bytes: float | None


def parse_gpus(text: str) -> list[GpuUse]:
    """Read the answer of ``nvidia-smi --format=csv,noheader,nounits``; lines of another form are left out."""
    rows = (row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == len(_QUERY))
    return [
        GpuUse(index, model, _number(utilization, 0.01), _number(used, _MIB), _number(total, _MIB))
        for index, model, utilization, used, total in rows
    ]


def _number(text: str, unit: float) -> float | None:
    try:
        return float(text) * unit
    except ValueError:
        return None


class GpuProbe:
    """Asks ``nvidia-smi``, at most every 10 s however often it is read. A failure means no figures, for as long."""

    def __init__(self, command: str = "nvidia-smi") -> None:
        self._command = shutil.which(command)
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._found: list[GpuUse] = []

    def read(self) -> list[GpuUse]:
        """Use of every GPU of the machine; empty where there is none."""
        if self._command is None:
            return []
        with self._lock:
            if time.monotonic() - self._asked_at >= _FRESH_S:
                self._found = self._ask(self._command)
                self._asked_at = time.monotonic()
            return self._found

    def _ask(self, command: str) -> list[GpuUse]:
        arguments = [command, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return []
        return parse_gpus(answer.stdout)
