"""Where the entry point of the group ``trainpack.commands`` has always pointed; the commands: ``worker.local.cli``."""

from __future__ import annotations

from worker.local.cli import register

__all__ = ["register"]
