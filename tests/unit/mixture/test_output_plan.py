"""The planned header: order of keys and tensors, what is added, moved, dropped and cut."""

import struct
from typing import Any

import pytest

from api_client.contract.quant_types import QuantType
from tests.unit.gguf.bytes_of_gguf import parse_gguf
from worker.models.gguf.metadata import MetadataValue, ValueType, string_value, uint32_value
from worker.models.gguf.tensors import TensorSpec
from worker.models.gguf.types import GGMLType
from worker.models.mixture.model import ModelFacts
from worker.models.mixture.plan import ImatrixStamp, as_rewritten, plan_output
from worker.models.mixture.policy import choose_mixture
from worker.models.mixture.sizes import predict_sizes

MODEL = ModelFacts("llama", 2)
TENSORS = [
    TensorSpec("blk.1.attn_q.weight", (256, 2), GGMLType.F16),
    TensorSpec("output_norm.weight", (256,), GGMLType.F32),
    TensorSpec("blk.0.attn_q.weight", (256, 3, 1), GGMLType.F16),
]
METADATA = {
    "general.file_type": uint32_value(1),
    "split.count": MetadataValue.scalar(ValueType.UINT16, 1),
    "general.architecture": string_value("llama"),
    "general.quantization_version": uint32_value(2),
    "llama.block_count": uint32_value(2),
}


def plan(stamp: Any = None, metadata: Any = METADATA) -> Any:
    mixture = choose_mixture(MODEL, TENSORS, QuantType.Q8_0, has_imatrix=stamp is not None)
    return plan_output(metadata, TENSORS, mixture, stamp)


def values(found: Any) -> dict[str, Any]:
    return {key: value.value for key, value in found.metadata.items()}


def test_keys_set_again_move_to_the_end_and_split_keys_go() -> None:
    assert list(values(plan()).items()) == [
        ("general.architecture", "llama"),
        ("llama.block_count", 2),
        ("general.quantization_version", 2),
        ("general.file_type", 7),
    ]


def test_a_matrix_is_told_by_its_base_name() -> None:
    stamp = ImatrixStamp("/home/somebody/runs/42/imatrix.gguf", "text/calibration.txt", 5, 7)
    assert list(values(plan(stamp)).items())[4:] == [
        ("quantize.imatrix.file", "imatrix.gguf"),
        ("quantize.imatrix.dataset", "text/calibration.txt"),
        ("quantize.imatrix.entries_count", 5),
        ("quantize.imatrix.chunks_count", 7),
    ]


def test_unknown_facts_of_a_matrix_are_left_out_and_long_texts_cut() -> None:
    found = values(plan(ImatrixStamp("x" * 200, None, 5, 0)))
    assert found["quantize.imatrix.file"] == "x" * 127
    assert "quantize.imatrix.dataset" not in found
    assert "quantize.imatrix.chunks_count" not in found
    dataset = plan(ImatrixStamp("m", "\u00e9" * 70, 5, 0)).metadata["quantize.imatrix.dataset"]
    assert dataset.raw == struct.pack("<Q", 127) + ("\u00e9" * 70).encode()[:127]


def test_tensors_are_in_processing_order_with_padded_offsets() -> None:
    found = plan()
    assert [(t.name, t.shape, t.type.name, t.offset) for t in found.tensors] == [
        ("output_norm.weight", (256,), "F32", 0),
        ("blk.0.attn_q.weight", (256, 3), "Q8_0", 1024),
        ("blk.1.attn_q.weight", (256, 2), "Q8_0", 1024 + 832),
    ]
    assert found.sources == (1, 2, 0)
    assert found.size_bytes == len(found.header) + 1024 + 832 + 544


@pytest.mark.parametrize("alignment", [8, 32, 128])
def test_alignment_is_kept_and_honoured(alignment: int) -> None:
    found = plan(metadata={**METADATA, "general.alignment": uint32_value(alignment)})
    parsed = parse_gguf(found.header + bytes(found.size_bytes - len(found.header)))
    assert parsed.alignment == alignment
    assert parsed.data_offset == len(found.header)
    assert all(tensor.offset % alignment == 0 for tensor in parsed.tensors)
    assert parsed.size_bytes % alignment == 0


def test_values_are_rewritten_as_llama_cpp_rewrites_them() -> None:
    texts = MetadataValue.array(ValueType.STRING, [b"a\0b", b"", b"c"])
    assert as_rewritten(texts).value == ["a", "", "c"]
    assert as_rewritten(MetadataValue.scalar(ValueType.STRING, b"x\0")).value == "x"
    assert as_rewritten(MetadataValue(ValueType.BOOL, True, 3, b"\0\5\1")).raw == b"\0\1\1"
    untouched = MetadataValue.array(ValueType.UINT8, [0, 5])
    assert as_rewritten(untouched) is untouched


def test_bits_per_weight_leave_padding_out() -> None:
    tensors = [TensorSpec("a.weight", (32, 3), GGMLType.F16)]
    mixture = choose_mixture(MODEL, tensors, QuantType.Q8_0, has_imatrix=False)
    assert plan_output({}, tensors, mixture).bits_per_weight == 8.5


def test_sizes_can_be_predicted_before_any_file_exists() -> None:
    predicted = predict_sizes(TENSORS, [QuantType.F16, QuantType.Q4_K_M], model=MODEL)
    assert predicted[QuantType.F16].data_bytes == 1024 + 512 * 3 + 512 * 2
    assert predicted[QuantType.Q4_K_M].data_bytes == 1024 + 448 + 288  # 3 and 2 rows of 144 bytes, padded
    with_metadata = predict_sizes(TENSORS, [QuantType.F16], metadata=METADATA)[QuantType.F16]
    assert with_metadata.data_bytes == predicted[QuantType.F16].data_bytes
    assert with_metadata.file_bytes == with_metadata.header_bytes + with_metadata.data_bytes
    with pytest.raises(ValueError, match="metadata or the facts"):
        predict_sizes(TENSORS, [QuantType.F16])
