"""Tensors kept on disk, so that a run goes on where it was stopped. Files appear whole; nothing is trusted as code."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worker.storage.atomic import atomic_write_bytes, atomic_write_text

_IDENTITY = "identity"


class Shelf:
    """A directory of its own for one run.

    Args:
        directory: Made where it does not exist.
        identity: What the run depends on; what another run left there is removed.
        device: Where tensors go when they are taken out.
    """

    def __init__(self, directory: Path, identity: str, device: torch.device) -> None:
        self._directory = directory
        self._device = device
        kept = directory / _IDENTITY
        if not kept.is_file() or kept.read_text("utf-8") != identity:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            atomic_write_text(kept, identity)

    def __contains__(self, name: str) -> bool:
        return (self._directory / name).is_file()

    def put(self, name: str, value: Any) -> None:
        """Keep tensors in tuples, lists and dictionaries."""
        buffer = io.BytesIO()
        torch.save(value, buffer)
        atomic_write_bytes(self._directory / name, buffer.getvalue(), durable=False)

    def get(self, name: str) -> Any:
        """Take out what :meth:`put` kept."""
        return torch.load(self._directory / name, map_location=self._device, weights_only=True)

    def drop(self, name: str) -> None:
        """Forget one."""
        (self._directory / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all."""
        shutil.rmtree(self._directory, ignore_errors=True)


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same tuples, lists and dictionaries with every tensor changed; whatever else they hold stays."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(member, change) for member in value)
    if type(value) is dict:
        return {key: map_tensors(member, change) for key, member in value.items()}
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in tuples, lists and dictionaries, in order."""
    tensors: list[torch.Tensor] = []
    map_tensors(value, tensors.append)
    return tensors
