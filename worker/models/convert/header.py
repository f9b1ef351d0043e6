"""The header that upstream's ``GGUFWriter`` would write, encoded faster: upstream takes seconds for a vocabulary."""

from __future__ import annotations

import struct
from typing import Any

from worker.foreign import packed_value
from worker.models.gguf.metadata import MetadataValue, ValueType, encode_string
from worker.models.gguf.reader import MAGIC
from worker.models.gguf.tensors import align_up
from worker.models.gguf.writer import WRITTEN_VERSION

# how upstream types the items of an array that does not say
_ITEM_TYPES = {
    str: ValueType.STRING,
    bytes: ValueType.STRING,
    float: ValueType.FLOAT32,
    int: ValueType.INT32,
    bool: ValueType.BOOL,
}


def encode_prepared(writer: Any) -> bytes:
    """Every byte before the data section.

    Args:
        writer: Upstream's ``GGUFWriter`` with all keys and tensors, of one file (no shards).
    """
    values, tensors = writer.kv_data[0], writer.tensors[0]
    parts = [MAGIC, struct.pack("<IQQ", WRITTEN_VERSION, len(tensors), len(values))]
    for key, entry in values.items():
        parts += (encode_string(key), _encode_value(writer, entry))
    offset = 0
    for name, info in tensors.items():
        shape = [int(extent) for extent in reversed(info.shape)]
        parts += (
            encode_string(name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, int(info.dtype), offset),
        )
        offset += align_up(int(info.nbytes), writer.data_alignment)
    header = b"".join(parts)
    return header + b"\0" * (align_up(len(header), writer.data_alignment) - len(header))


def _encode_value(writer: Any, entry: Any) -> bytes:
    kind = ValueType(int(entry.type))
    if kind is not ValueType.ARRAY:
        return MetadataValue.scalar(kind, entry.value).encode()
    types = {type(item) for item in entry.value} if isinstance(entry.value, list | tuple) else set()
    if len(types) != 1 or (entry.sub_type is None and not types <= _ITEM_TYPES.keys()):
        return packed_value(writer, entry)
    item_kind = ValueType(int(entry.sub_type)) if entry.sub_type is not None else _ITEM_TYPES[types.pop()]
    return MetadataValue.array(item_kind, entry.value).encode()
