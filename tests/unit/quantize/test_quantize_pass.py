"""The pass itself: slabs, experts, alignment, progress."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api_client.contract.fit import AnyQuantType
from api_client.contract.quant_types import QuantType
from tests.golden.models import bell, build_model, positive
from tests.unit.quantize.sources import save_source
from worker.models.gguf.check import check_gguf
from worker.models.gguf.metadata import uint32_value
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.tensors import TensorInfo
from worker.models.gguf.types import GGMLType, row_bytes
from worker.models.kernels import quantize_rows
from worker.models.quantize.digest import OrderedDigest
from worker.models.quantize.engine import quantize_file
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.slabs import SLAB_ELEMENTS, cut_slabs
from worker.setting import WorkSetting

Q = QuantType


def encoded(kind: GGMLType, rows: np.ndarray, weights: np.ndarray | None = None) -> bytes:
    out = np.empty((rows.shape[0], row_bytes(kind, rows.shape[1])), np.uint8)
    quantize_rows(kind, np.ascontiguousarray(rows, np.float32), out, weights)
    return out.tobytes()


def test_slabs_cover_every_row_once() -> None:
    tensors = [
        TensorInfo("a", (1000, 2500), GGMLType.F16, 0),
        TensorInfo("none", (8, 0), GGMLType.F16, 0),
        TensorInfo("b", (SLAB_ELEMENTS * 2, 3), GGMLType.F16, 0),
        TensorInfo("c", (7,), GGMLType.F32, 0),
    ]
    slabs = list(cut_slabs(tensors))
    assert [slab.index for slab in slabs] == list(range(len(slabs)))
    found = [(slab.tensor.name, slab.first_row, slab.row_count, slab.is_last) for slab in slabs]
    step = SLAB_ELEMENTS // 1000
    assert found == [
        ("a", 0, step, False),
        ("a", step, step, False),
        ("a", 2 * step, 2500 - 2 * step, True),
        ("b", 0, 1, False),
        ("b", 1, 1, False),
        ("b", 2, 1, True),
        ("c", 0, 1, True),
    ]


def test_each_expert_has_its_own_weights_across_slab_borders(tmp_path: Path) -> None:
    # 7 experts of 300 rows of 768: slabs of 1365 rows begin and end inside experts
    experts = bell("experts", 7 * 300 * 768).reshape(7, 300, 768)
    importance = positive("importance", 7 * 768).reshape(7, 768)
    source = save_source(tmp_path / "m.gguf", {"blk.0.ffn_down_exps.weight": experts})
    matrix = ImatrixData("m", None, 0, {"blk.0.ffn_down_exps.weight": importance})
    assert experts.size > SLAB_ELEMENTS
    kinds = {Q.Q4_0: GGMLType.Q4_0, Q.Q4_K_S: GGMLType.Q4_K, Q.Q8_0: GGMLType.Q8_0}
    paths: dict[AnyQuantType, Path] = {kind: tmp_path / f"{kind.value}.gguf" for kind in kinds}
    result = quantize_file(source, paths, imatrix=matrix, setting=WorkSetting(threads=3))
    assert result.failed == {}
    for kind, ggml_type in kinds.items():
        expected = b"".join(encoded(ggml_type, experts[i], importance[i]) for i in range(7))
        with open_gguf(paths[kind]) as file:
            assert file.tensor_bytes(file.tensors[0]).tobytes() == expected


def test_a_flat_entry_of_the_older_format_is_cut_by_expert(tmp_path: Path) -> None:
    experts = bell("flat", 3 * 4 * 64).reshape(3, 4, 64)
    importance = positive("flat importance", 3 * 64)
    source = save_source(tmp_path / "m.gguf", {"blk.0.ffn_up_exps.weight": experts})
    digests = []
    for shape in ((1, 192), (3, 64)):
        matrix = ImatrixData("m", None, 0, {"blk.0.ffn_up_exps.weight": importance.reshape(shape)})
        result = quantize_file(source, {Q.Q4_0: tmp_path / "out.gguf"}, imatrix=matrix)
        digests.append(result.outcomes[Q.Q4_0].sha256)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("alignment", [16, 64, 4096])
def test_another_alignment_makes_a_readable_file_with_the_same_tensors(
    tied: Path, tmp_path: Path, alignment: int
) -> None:
    aligned = build_model(tmp_path / "m.gguf", "tied", extra={"general.alignment": uint32_value(alignment)})
    kinds = (Q.Q4_K_M, Q.F16)
    plain = quantize_file(tied, {kind: tmp_path / f"32-{kind.value}.gguf" for kind in kinds})
    other = quantize_file(aligned, {kind: tmp_path / f"x-{kind.value}.gguf" for kind in kinds})
    for kind in kinds:
        check_gguf(other.outcomes[kind].path)
        assert other.outcomes[kind].sha256 == hashlib.sha256(other.outcomes[kind].path.read_bytes()).hexdigest()
        with open_gguf(plain.outcomes[kind].path) as a, open_gguf(other.outcomes[kind].path) as b:
            assert b.alignment == alignment
            assert b.data_offset % alignment == 0
            assert [tensor.name for tensor in a.tensors] == [tensor.name for tensor in b.tensors]
            for first, second in zip(a.tensors, b.tensors, strict=True):
                assert a.tensor_bytes(first).tobytes() == b.tensor_bytes(second).tobytes()


def test_progress_goes_up_to_the_end_for_each_type(tied: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    result = quantize_file(
        tied,
        {kind: tmp_path / f"{kind.value}.gguf" for kind in (Q.Q8_0, Q.Q4_0)},
        setting=WorkSetting(report=seen.append, threads=2),
    )
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    last = seen[-1]
    assert (last.tensors_done, last.done) == (last.tensors_total, last.total)
    assert last.written_bytes == last.total_bytes
    with open_gguf(result.outcomes[Q.Q8_0].path) as file:
        assert last.total_bytes[Q.Q8_0] == sum(tensor.size_bytes for tensor in file.tensors)


def test_a_failed_type_leaves_the_progress(tied: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    quantize_file(
        tied, {Q.Q8_0: tmp_path / "no" / "x", Q.Q4_0: tmp_path / "out.gguf"}, setting=WorkSetting(report=seen.append)
    )
    assert set(seen[-1].written_bytes) == {Q.Q4_0}


def test_tensors_without_elements_pass_through(tmp_path: Path) -> None:
    tensors = {"blk.0.attn_q.weight": np.ones((2, 64), np.float32), "blk.1.none.weight": np.ones((0, 64), np.float32)}
    result = quantize_file(save_source(tmp_path / "m.gguf", tensors), {Q.Q8_0: tmp_path / "out.gguf"})
    outcome = result.outcomes[Q.Q8_0]
    assert outcome.sha256 == hashlib.sha256(outcome.path.read_bytes()).hexdigest()
    with open_gguf(outcome.path) as file:
        assert [(tensor.name, tensor.size_bytes) for tensor in file.tensors] == [
            ("blk.0.attn_q.weight", 136),
            ("blk.1.none.weight", 0),
        ]


def test_the_digest_of_a_matrix_minds_names_and_weights_not_their_order() -> None:
    a, b = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    first = ImatrixData("m", None, 0, {"a": a, "b": b}).sha256
    assert first == ImatrixData("other name", "text", 9, {"b": b, "a": a}).sha256
    assert first != ImatrixData("m", None, 0, {"a": b, "b": a}).sha256


def test_parts_out_of_order_have_the_digest_of_the_whole() -> None:
    parts = [np.full(size, size, np.uint8) for size in (5, 3, 0, 7)]
    whole = b"head" + b"".join(part.tobytes() + bytes(index) for index, part in enumerate(parts))
    digest = OrderedDigest(hashlib.sha256(b"head"))
    for index in (2, 0, 3, 1):
        digest.add(index, parts[index], index)
    assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()
