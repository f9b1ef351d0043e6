"""Safetensors files written byte by byte, so that they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """``header`` may be a JSON value or raw bytes; ``length`` overrides the announced length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(shape: Any, start: int, end: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_shard(path: Path, names: list[str]) -> Path:
    """A valid file of one float32 number per name."""
    header = {name: entry([1], 4 * index, 4 * index + 4) for index, name in enumerate(names)}
    return write_raw(path, header, bytes(4 * len(names)))


def write_model(directory: Path, *, config: Any = None, names: tuple[str, ...] = ("a", "b")) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    write_shard(directory / "model.safetensors", list(names))
    return directory


def write_sharded(directory: Path, weight_map: dict[str, str]) -> Path:
    """A model of shards beside an index; only plain names get a file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for shard in set(weight_map.values()):
        if "/" not in shard:
            write_shard(directory / shard, [name for name, file in weight_map.items() if file == shard])
    return directory
