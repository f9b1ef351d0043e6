"""The output file before it exists: its metadata, its tensors with types and offsets, its size to the byte.

The layout is that of ``llama-quantize`` b11434, with two deliberate differences:

* ``quantize.imatrix.file`` holds the base name of the matrix file. llama-quantize writes the path it was given, which
  leaks directory names into published files.
* ``general.alignment`` is honoured. llama-quantize copies the key but always pads to 32, so that a file whose key says
  anything else cannot be read again. Here the key stays and the data is padded to what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING

from api_client.contract.quant_types import QUANT_TYPES
from worker.models.gguf.metadata import (
    TEXT_ERRORS,
    Metadata,
    MetadataValue,
    ValueType,
    string_value,
    uint32_value,
)
from worker.models.gguf.tensors import TensorInfo, TensorSpec, data_bytes, normal_shape, place_tensors
from worker.models.gguf.writer import encode_header, header_alignment
from worker.models.mixture.names import processing_key

if TYPE_CHECKING:
    from worker.models.mixture.policy import Mixture

QUANTIZATION_VERSION_KEY = "general.quantization_version"
QUANTIZATION_VERSION = 2
FILE_TYPE_KEY = "general.file_type"
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

_IMATRIX_KEYS = "quantize.imatrix."
_TEXT_LIMIT_BYTES = 127  # llama-quantize passes these texts through a buffer of 128 bytes


@dataclass(frozen=True, slots=True)
class ImatrixStamp:
    """What an output file says of the importance matrix it was made with.

    Attributes:
        file_name: Name of the matrix file; only the base name is written.
        dataset: Name of the calibration text, or None.
        entry_count: Number of tensors the matrix has weights for.
        chunk_count: Number of text chunks it was computed from; 0 if unknown.
    """

    file_name: str
    dataset: str | None
    entry_count: int
    chunk_count: int


@dataclass(frozen=True)
class OutputPlan:
    """A file to be written.

    Attributes:
        mixture: The decision it follows.
        metadata: Its metadata, in file order.
        tensors: Its tensors in file order, with their types and offsets.
        sources: For each of ``tensors`` the index of its source tensor in the order given to :func:`plan_output`.
    """

    mixture: Mixture
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    sources: tuple[int, ...]

    @cached_property
    def alignment(self) -> int:
        """Alignment of the data section and of every tensor in it."""
        return header_alignment(self.metadata)

    @cached_property
    def header(self) -> bytes:
        """All bytes before the data section."""
        return encode_header(self.metadata, self.tensors)

    @cached_property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + data_bytes(self.tensors, self.alignment)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per element, padding and header not counted, as llama-quantize prints it."""
        elements = sum(tensor.element_count for tensor in self.tensors)
        return 8 * sum(tensor.size_bytes for tensor in self.tensors) / elements if elements else 0.0


def plan_output(
    metadata: Metadata, tensors: Sequence[TensorSpec], mixture: Mixture, stamp: ImatrixStamp | None = None
) -> OutputPlan:
    """Lay out the file that a mixture makes of a source file.

    Args:
        metadata: The source's metadata.
        tensors: The source's tensors, in the order that the mixture was chosen for.
        mixture: Types to use.
        stamp: Importance matrix used, if any.
    """
    sources = tuple(sorted(range(len(tensors)), key=lambda index: processing_key(tensors[index].name)))
    specs = [TensorSpec(tensors[i].name, normal_shape(tensors[i].shape), mixture.types[i]) for i in sources]
    written = output_metadata(metadata, mixture, stamp)
    return OutputPlan(mixture, written, tuple(place_tensors(specs, header_alignment(written))), sources)


def output_metadata(metadata: Metadata, mixture: Mixture, stamp: ImatrixStamp | None = None) -> Metadata:
    """The output's metadata: the source's, then what this quantization adds; a key set again moves to the end."""
    written = {key: as_rewritten(value) for key, value in metadata.items() if key not in SPLIT_KEYS}
    added = {
        QUANTIZATION_VERSION_KEY: uint32_value(QUANTIZATION_VERSION),
        FILE_TYPE_KEY: uint32_value(QUANT_TYPES[mixture.quant_type].file_type),
        **(_stamp_values(stamp) if stamp else {}),
    }
    for key, value in added.items():
        written.pop(key, None)
        written[key] = value
    return written


def _stamp_values(stamp: ImatrixStamp) -> dict[str, MetadataValue]:
    values = {f"{_IMATRIX_KEYS}file": string_value(_cut(PurePath(stamp.file_name).name))}
    if stamp.dataset is not None:
        values[f"{_IMATRIX_KEYS}dataset"] = string_value(_cut(stamp.dataset))
    values[f"{_IMATRIX_KEYS}entries_count"] = uint32_value(stamp.entry_count)
    if stamp.chunk_count > 0:
        values[f"{_IMATRIX_KEYS}chunks_count"] = uint32_value(stamp.chunk_count)
    return values


def _cut(text: str) -> str:
    return text.encode("utf-8", TEXT_ERRORS)[:_TEXT_LIMIT_BYTES].decode("utf-8", TEXT_ERRORS)


def as_rewritten(value: MetadataValue) -> MetadataValue:
    """A value as llama.cpp's own tools write it again: texts end at a zero byte, bools are 0 or 1."""
    if value.type is ValueType.BOOL:
        return MetadataValue(value.type, value.is_array, value.count, bytes(map(bool, value.raw)))
    if value.type is ValueType.STRING:
        texts = list(value.strings())
        if any(b"\0" in text for text in texts):
            cut = [text.split(b"\0", 1)[0] for text in texts]
            return MetadataValue.array(value.type, cut) if value.is_array else MetadataValue.scalar(value.type, cut[0])
    return value
