"""The embedded stack: Valkey, SeaweedFS and workers on one machine, started and stopped as one.

Reading order: ``stack`` (the whole) -> ``valkey``, ``seaweedfs``, ``workers`` (the parts) -> ``processes``, ``guard``
(starting, stopping, no orphans) -> ``state`` (how other commands find it).
"""

from worker.local.embedded.stack import Stack
from worker.local.embedded.state import StackInfo, read_stack

__all__ = ["Stack", "StackInfo", "read_stack"]
