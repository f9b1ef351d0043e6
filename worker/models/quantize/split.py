"""Cuts a finished GGUF file into shards, as ``llama-gguf-split --split --split-max-size`` of llama.cpp b11434 does.

Shards are named ``<stem>-00001-of-0000N.gguf``; readers open the first and find the others by name. The first holds all
metadata, each its own ``split.*`` keys. Tensors stay whole and in order, so a tensor larger than the limit makes a
shard larger than the limit. Where the tool gives up (such a tensor comes first and would leave the first shard empty),
the shard simply begins with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.gguf.metadata import Metadata, MetadataValue, ValueType
from worker.models.gguf.reader import ALIGNMENT_KEY, GGUFFile, open_gguf
from worker.models.gguf.tensors import DEFAULT_ALIGNMENT, TensorInfo, align_up, place_tensors
from worker.models.gguf.writer import encode_header, header_alignment
from worker.models.mixture.plan import as_rewritten
from worker.storage.partial import PartialFile

MAX_SHARDS = 65535
_COPY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: its name and the tensors it holds, as they lie in the source."""

    path: Path
    header: bytes
    sources: tuple[TensorInfo, ...]
    alignment: int


def split_gguf(path: Path, max_bytes: int, *, stem: Path | None = None) -> list[Path]:
    """Split a file so that no shard's tensor data exceeds a limit.

    Args:
        path: A complete GGUF file; it is left as it is.
        max_bytes: Most bytes of tensor data in a shard, padding counted.
        stem: Path of the shards without ``-00001-of-0000N.gguf``; by default the file's without its suffix.

    Returns:
        The shards in order, or only ``path`` itself if its data is within the limit.

    Raises:
        PackagingError: ``gguf_invalid``; ``request_invalid`` if more than 65535 shards would be needed;
            ``disk_space_insufficient`` or ``output_dir_not_writable``, and no shard is left then.
    """
    with open_gguf(path) as source:
        groups = _group(source, max_bytes)
        if len(groups) <= 1:
            return [path]
        if len(groups) > MAX_SHARDS:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"{path} would need {len(groups)} shards of {max_bytes} bytes; at most {MAX_SHARDS} are possible",
                fields={"shards": len(groups), "max_bytes": max_bytes},
            )
        shards = _plan(source, groups, stem or path.with_suffix(""))
        _write_all(path, source, shards)
        return [shard.path for shard in shards]


def shard_path(stem: Path, index: int, count: int) -> Path:
    """Name of a shard, ``index`` from 0."""
    return stem.with_name(f"{stem.name}-{index + 1:05d}-of-{count:05d}.gguf")


def _group(source: GGUFFile, max_bytes: int) -> list[list[TensorInfo]]:
    """Fill one shard after the other."""
    groups: list[list[TensorInfo]] = []
    filled = 0
    for tensor in source.tensors:
        size = align_up(tensor.size_bytes, source.alignment)
        if not groups or filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return groups


def _plan(source: GGUFFile, groups: Sequence[Sequence[TensorInfo]], stem: Path) -> list[Shard]:
    shards = []
    for index, group in enumerate(groups):
        metadata = _shard_metadata(source, index, len(groups))
        alignment = header_alignment(metadata)
        header = encode_header(metadata, place_tensors(group, alignment))
        shards.append(Shard(shard_path(stem, index, len(groups)), header, tuple(group), alignment))
    return shards


def _shard_metadata(source: GGUFFile, index: int, count: int) -> Metadata:
    """All metadata for the first shard, none but ``split.*`` (and a special alignment) for the others.

    ``split.count`` comes last, as the tool writes it.
    """
    kept = {key: as_rewritten(value) for key, value in source.metadata.items()} if index == 0 else {}
    if index and source.alignment != DEFAULT_ALIGNMENT:
        kept[ALIGNMENT_KEY] = source.metadata[ALIGNMENT_KEY]
    added = {
        "split.no": MetadataValue.scalar(ValueType.UINT16, index),
        "split.tensors.count": MetadataValue.scalar(ValueType.INT32, len(source.tensors)),
        "split.count": MetadataValue.scalar(ValueType.UINT16, count),
    }
    for key, value in added.items():
        kept.pop(key, None)
        kept[key] = value
    return kept


def _write_all(path: Path, source: GGUFFile, shards: Sequence[Shard]) -> None:
    """Write every shard, then give all their names; on failure remove what was made."""
    files = [PartialFile(shard.path) for shard in shards]
    finished: list[Path] = []
    try:
        with path.open("rb", buffering=0) as stream:
            for shard, file in zip(shards, files, strict=True):
                _write(stream.fileno(), source, shard, file)
        for file in files:
            file.finish()
            finished.append(file.final)
    except BaseException:
        for file in files:
            file.discard()
        for made in finished:
            made.unlink(missing_ok=True)
        raise


def _write(descriptor: int, source: GGUFFile, shard: Shard, file: PartialFile) -> None:
    sizes = [align_up(tensor.size_bytes, shard.alignment) for tensor in shard.sources]
    file.open()
    file.claim(len(shard.header) + sum(sizes), 0)  # what is not written reads as zeros: the padding between tensors
    file.write(memoryview(shard.header), 0)
    start = len(shard.header)
    for tensor, size in zip(shard.sources, sizes, strict=True):
        position = source.data_offset + tensor.offset
        end, target = position + tensor.size_bytes, start
        while position < end:
            part = os.pread(descriptor, min(_COPY_BYTES, end - position), position)
            if not part:
                raise PackagingError(ErrorCode.GGUF_INVALID, f"{source.name} ended while it was split")
            file.write(memoryview(part), target)
            position, target = position + len(part), target + len(part)
        start += size
