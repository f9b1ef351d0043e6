"""The sensitivity stage: beside the importance matrix, only where a fit is asked for, and from a file that is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.request import PackagingRequest
from tests.harness import RecordingReporter, run_stages
from tests.unit.imatrix import imatrix_models
from tests.unit.stages.conftest import TinyRun
from worker.models.imatrix.load import read_imatrix
from worker.models.sensitivity.gguf_form import read_sensitivity


def test_a_fit_gets_sensitivities_and_another_job_takes_them_over(tiny: TinyRun, tmp_path: Path) -> None:
    wanted = {"quant_types": ["fit:like:Q4_K_M"], "imatrix": {"chunks": 2}}
    results = run_stages(tiny.request(**wanted), tmp_path / "first", until=StageName.SENSITIVITY)
    (made,) = results[StageName.SENSITIVITY].artifacts
    (matrix,) = results[StageName.IMATRIX].artifacts
    assert (made.kind, made.name) == (ArtifactKind.SENSITIVITY, "merged_model.sensitivity.gguf")
    found, sums = read_sensitivity(Path(made.path)), read_imatrix(Path(matrix.path))
    assert found.has_gradients
    assert {"token_embd.weight", "output.weight"} < found.entries.keys()
    for name, entry in sums.entries.items():
        np.testing.assert_array_equal(found.entries[name].inputs.in_sum2, entry.in_sum2)

    given = tmp_path / "kept.sensitivity.gguf"
    shutil.copyfile(made.path, given)
    again = tiny.request(quant_types=["fit:8bpw"], fit={"sensitivity": str(given)})
    results = run_stages(again, tmp_path / "second", until=StageName.SENSITIVITY)
    assert results[StageName.SENSITIVITY].facts == {"computed": False}
    (kept,) = results[StageName.SENSITIVITY].artifacts
    assert Path(kept.path).is_relative_to(tmp_path / "second")
    assert kept.is_whole(given)
    (same,) = results[StageName.IMATRIX].artifacts
    # the model was not run again; plain sums, which nothing of the quantization uses, the sensitivities do not keep
    taken_over = read_imatrix(Path(same.path))
    assert (taken_over.datasets, taken_over.chunk_count, taken_over.chunk_tokens) == (
        sums.datasets, sums.chunk_count, sums.chunk_tokens
    )  # fmt: skip
    assert taken_over.entries.keys() == sums.entries.keys()
    for name, entry in taken_over.entries.items():
        np.testing.assert_array_equal(entry.in_sum2, sums.entries[name].in_sum2)
        np.testing.assert_array_equal(entry.counts, sums.entries[name].counts)


def test_without_a_fit_there_is_no_such_stage(tiny: TinyRun, tmp_path: Path) -> None:
    results = run_stages(tiny.request(imatrix={"chunks": 1}), tmp_path, until=StageName.QUANTIZE)
    assert StageName.SENSITIVITY not in results


def test_a_file_that_holds_none_is_refused_before_the_conversion(tiny: TinyRun, tmp_path: Path) -> None:
    given = tmp_path / "given.gguf"
    given.write_bytes(b"GGUF")
    request = tiny.request(quant_types=["fit:8bpw"], fit={"sensitivity": str(given)})
    with pytest.raises(PackagingError) as refused:
        run_stages(request, tmp_path / "scratch", until=StageName.PREPARE)
    assert refused.value.code is ErrorCode.SENSITIVITY_INVALID


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves T5's vocabulary open
def test_a_model_that_cannot_be_run_backward_is_fitted_by_the_importance_matrix(tmp_path: Path) -> None:
    base = imatrix_models.save_model("t5-encoder-decoder", tmp_path / "base")
    text = tmp_path / "text.txt"
    text.write_text(imatrix_models.TEXT * 4)
    request = PackagingRequest(
        base_model=base,
        template="quantize_base",
        output_dir=tmp_path / "out",
        quant_types=["fit:like:Q5_0"],
        fit={"types": "Q4_0,Q5_0,Q8_0"},
        imatrix={"calibration": str(text), "chunks": 1},
        evaluation="off",
    )
    told = RecordingReporter()
    results = run_stages(request, tmp_path / "scratch", until=StageName.QUANTIZE, reporter=told)
    (made,) = results[StageName.SENSITIVITY].artifacts
    assert not read_sensitivity(Path(made.path)).has_gradients
    warned = [message for level, message in told.lines if level == "warning"]
    assert any("cannot be run backward; errors are weighed by the importance matrix alone" in line for line in warned)
    assert any("chosen by prediction alone" in line for line in warned)
    file = next(each for each in results[StageName.QUANTIZE].artifacts if each.kind is ArtifactKind.QUANTIZED)
    assert file.size_bytes <= file.facts["fit"]["limit_bytes"]
    assert file.facts["fit"]["measured"] is None


def test_a_text_of_a_few_words_is_refused(tiny: TinyRun, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hardly a word.")
    request = tiny.request(quant_types=["fit:8bpw"], imatrix={"calibration": str(text)})
    with pytest.raises(PackagingError) as refused:
        run_stages(request, tmp_path / "scratch", until=StageName.SENSITIVITY)
    assert refused.value.code is ErrorCode.CALIBRATION_TOO_SHORT
