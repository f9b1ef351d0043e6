"""A file that is not written reads as the one that is: the same rows, and the same quantized files made of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from api_client.contract.quant_types import QuantType
from tests.unit.convert import consulted_samples
from tests.unit.convert.conftest import Run
from tests.unit.convert.convert_samples import teach_pre_tokenizers
from tests.unit.convert.test_classifiers import save_base
from worker.models.adapters import Overlay
from worker.models.convert.evaluate import Evaluator
from worker.models.convert.pipeline import conversion_identity, convert, open_conversion, reopen_conversion
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.convert.unwritten import UnwrittenFile, open_unwritten
from worker.models.gguf.reader import open_gguf
from worker.models.quantize.engine import quantize_file, quantize_source
from worker.setting import WorkProgress, WorkSetting
from worker.stop import StopRequested
from worker.storage.checksums import sha256_file

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open
SAMPLES = ("llama", "gemma2", "phi3", "mixtral", "gpt2")
"""Permuted rows; a tied head and values that are computed; fused tensors cut up; stacked experts; transposed."""
KINDS = (QuantType.Q8_0, QuantType.Q4_0, QuantType.F16)


@contextmanager
def opened(base: Path, overlay: Overlay | None) -> Iterator[UnwrittenFile]:
    planned = open_conversion(base, overlay=overlay)
    tokenizer, header = find_tokenizer(None, base), planned.plan.header
    conversion = reopen_conversion(base, header, overlay=overlay, tokenizer=tokenizer)
    assert conversion.identity == planned.identity
    assert conversion.identity == conversion_identity(base, header, overlay=overlay, tokenizer=tokenizer)
    with open_unwritten("m.gguf", conversion, threads=2) as file:
        yield file


def outputs(folder: Path) -> dict[AnyQuantType, Path]:
    folder.mkdir()
    return {kind: folder / f"m-{kind.value}.gguf" for kind in KINDS}


@pytest.mark.parametrize("name", SAMPLES)
def test_it_reads_as_the_file_and_gives_the_same_quantized_files(
    run_of: Callable[[str], Run], tmp_path: Path, name: str
) -> None:
    run = run_of(name)
    overlay = run.overlay(tmp_path / "overlay")
    convert(run.base, tmp_path / "m.gguf", overlay=overlay)
    expected = quantize_file(tmp_path / "m.gguf", outputs(tmp_path / "of_file"))
    with opened(run.base, overlay) as file:
        with open_gguf(tmp_path / "m.gguf") as written:
            assert (file.size_bytes, file.header_sha256) == (written.size_bytes, written.header_sha256)
            assert list(file.tensors) == list(written.tensors)
            for tensor in file.tensors:
                assert np.array_equal(file.tensor_bytes(tensor), written.tensor_bytes(tensor)), tensor.name
        result = quantize_source(file, outputs(tmp_path / "of_base"))
    assert result.failed == expected.failed == {}
    for kind, outcome in result.outcomes.items():
        assert outcome.sha256 == expected.outcomes[kind].sha256 == sha256_file(outcome.path), kind


@pytest.mark.parametrize("name", ["XLMRobertaForMaskedLM", "BertForMaskedLM"])
def test_a_class_that_is_converted_as_another_is_opened_again_as_that(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base", torch.bfloat16)
    convert(base, tmp_path / "m.gguf")
    with opened(base, None) as file, open_gguf(tmp_path / "m.gguf") as written:
        assert [tensor.name for tensor in file.tensors] == [tensor.name for tensor in written.tensors]
        for tensor in file.tensors:
            assert np.array_equal(file.tensor_bytes(tensor), written.tensor_bytes(tensor)), tensor.name


def test_dense_layers_that_changed_make_it_another_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach_pre_tokenizers(monkeypatch)
    (base := tmp_path / "base").mkdir()
    consulted_samples.SAMPLES["embedding-gemma"](base)
    with opened(base, None) as file:
        dense = file.tensor_bytes(next(t for t in file.tensors if t.name.startswith("dense_2"))).copy()
    planned = open_conversion(base)
    tokenizer, header = find_tokenizer(None, base), planned.plan.header
    save_file({"linear.weight": torch.zeros(48, 32)}, base / "2_Dense" / "model.safetensors")
    assert conversion_identity(base, header, tokenizer=tokenizer) != planned.identity
    with opened(base, None) as file:
        again = file.tensor_bytes(next(t for t in file.tensors if t.name.startswith("dense_2")))
        assert dense.any()
        assert not again.any()


def test_rows_are_there_for_whoever_reads_in_another_order(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    run = run_of("llama")
    convert(run.base, tmp_path / "m.gguf")
    with opened(run.base, None) as file, open_gguf(tmp_path / "m.gguf") as written:
        file.will_read(file.tensors)
        for tensor in reversed(file.tensors):
            for row in (0, tensor.row_count - 1):
                assert np.array_equal(file.read_rows(tensor, row, 1)[0], written.tensor_bytes(tensor)[row])


def test_stopped_work_goes_on_and_makes_no_tensor_again(
    run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, paths = run_of("llama"), outputs(tmp_path / "out")
    convert(run.base, tmp_path / "m.gguf")
    expected = quantize_file(tmp_path / "m.gguf", outputs(tmp_path / "of_file"))
    stop = [False]

    def report(progress: WorkProgress) -> None:
        stop[0] = progress.done > progress.total / 2

    with opened(run.base, None) as file, pytest.raises(StopRequested):
        quantize_source(file, paths, setting=WorkSetting(report=report, should_stop=lambda: stop[0], threads=1))
    made: list[Any] = []
    make = Evaluator.bytes_of

    def noted(evaluator: Evaluator, node: Any) -> Any:
        made.append(node)
        return make(evaluator, node)

    monkeypatch.setattr(Evaluator, "bytes_of", noted)
    with opened(run.base, None) as file:
        count = len(file.tensors)
        result = quantize_source(file, paths)
    for kind, outcome in result.outcomes.items():
        assert outcome.sha256 == expected.outcomes[kind].sha256
        assert 0 < outcome.resumed_tensors == count - len(made)


def test_a_base_model_that_is_written_to_meanwhile_is_refused_and_nothing_is_left(
    run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    run, paths = run_of("llama"), outputs(tmp_path / "out")
    weights = run.base / "model.safetensors"

    def touch(progress: WorkProgress) -> None:
        if progress.done == progress.total:
            os.utime(weights, ns=(time.time_ns(), time.time_ns()))

    with opened(run.base, None) as file, pytest.raises(PackagingError) as refused:
        quantize_source(file, paths, setting=WorkSetting(report=touch))
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID
    assert "changed while it was being read" in refused.value.message
    assert not list((tmp_path / "out").iterdir())


def test_another_model_than_was_planned_is_refused(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    header = open_conversion(run_of("gemma2").base).plan.header
    base = run_of("llama").base
    with pytest.raises(PackagingError) as refused:
        reopen_conversion(base, header, tokenizer=find_tokenizer(None, base))
    assert refused.value.code is ErrorCode.BASE_MODEL_INVALID
