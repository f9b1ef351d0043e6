"""Each kind of model is asked for what it is for, in the real llama.cpp, and an abort is told in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from api_client.contract.quality import QualityReport
from api_client.contract.request import PackagingRequest
from tests.field.encoders import MODELS, save_encoder
from tests.field.vocabularies import known_with_ends
from tests.harness import RecordingReporter, run_stages
from worker.models.convert.pipeline import convert
from worker.models.verify.ask import Question
from worker.models.verify.load import generate, prove
from worker.models.verify.purpose import Purpose, purpose_of
from worker.models.verify.reason import last_lines, reason_of

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves files open


@pytest.fixture(autouse=True)
def _known_pre_tokenizers() -> Iterator[None]:
    with known_with_ends():
        yield


DOES = {
    "xlm-roberta": (Purpose.EMBED, "embeds texts as vectors of 64 numbers"),
    "reranker": (Purpose.RANK, "ranks, scores within "),
    "modernbert": (Purpose.EMBED, "embeds texts as vectors of 64 numbers"),
    "t5-encoder": (Purpose.EMBED, "embeds texts as vectors of 64 numbers"),
    "t5": (Purpose.LOAD, "is not run"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_verify_stage_asks_an_encoder_for_what_it_is_for(tmp_path: Path, name: str) -> None:
    base = save_encoder(name, tmp_path / "base")
    request = PackagingRequest(
        template="quantize_base", base_model=base, output_dir=tmp_path / "out", quant_types=["Q8_0"]
    )
    reporter = RecordingReporter()
    results = run_stages(request, tmp_path / "scratch", reporter=reporter)
    purpose, does = DOES[name]
    assert results[StageName.VERIFY].facts["loaded"] == ["base-Q8_0.gguf", "base.gguf"]
    for file in ("base.gguf", "base-Q8_0.gguf"):
        assert purpose_of(tmp_path / "out" / file) is purpose
        assert any(f"{file} loads and {does}" in line for _, line in reporter.lines)
    # nor does the evaluation that every job has by default stand in the way of what it cannot run
    quality = QualityReport.model_validate_json((tmp_path / "out" / "quality.json").read_bytes())
    assert all(file.overall is None and file.not_judged for file in quality.files)


def test_vectors_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    convert(save_encoder("xlm-roberta", tmp_path / "base", scale=0.0), tmp_path / "model.gguf", gguf_dtype="f32")
    with pytest.raises(PackagingError, match=r"model\.gguf does not work in llama\.cpp: it loads, and ") as refused:
        prove(Question(str(tmp_path / "model.gguf")))
    assert refused.value.code is ErrorCode.OUTPUT_DOES_NOT_LOAD


def test_a_failed_assertion_is_the_message(tmp_path: Path) -> None:
    convert(save_encoder("t5", tmp_path / "base"), tmp_path / "model.gguf", gguf_dtype="f32")
    with pytest.raises(PackagingError) as refused:
        generate(Question(str(tmp_path / "model.gguf")))
    reason = refused.value.fields["reason"]
    assert reason.startswith("llama-graph.cpp:")
    assert "GGML_ASSERT(" in reason
    assert "signal" not in refused.value.message
    assert "/" not in reason.split(":")[0]
    assert not any(line.startswith("#") for line in refused.value.fields["loader_log"])


BACKTRACE = """\
0.00.5 W load: model vocab missing newline token
/workspace/thirdparty/llama.cpp/src/llama-model.cpp:1392: GGML_ASSERT(n_expert_used_max > 0) failed
[New LWP 21660]
[Thread debugging using libthread_db enabled]
0x00007f3bafe8a9e3 in __GI___wait4 (pid=21661) at ../sysdeps/unix/sysv/linux/wait4.c:30
30	../sysdeps/unix/sysv/linux/wait4.c: No such file or directory.
#0  0x00007f3bafe8a9e3 in __GI___wait4 (pid=21661) at ../sysdeps/unix/sysv/linux/wait4.c:30
#1  0x00007f3b5a6f0c4b in ggml_print_backtrace () from /usr/lib/libggml-base.so
[Inferior 1 (process 21659) detached]
"""
THROWN = "terminate called after throwing an instance of 'std::runtime_error'\n  what():  unknown quant\n"


@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [
        (BACKTRACE, -6, "llama-model.cpp:1392: GGML_ASSERT(n_expert_used_max > 0) failed"),
        (f"0.1 E cmn load: oh\n{BACKTRACE}", -6, "llama-model.cpp:1392: GGML_ASSERT(n_expert_used_max > 0) failed"),
        ("/a/ggml.c:12: fatal error\n", -6, "ggml.c:12: fatal error"),
        (THROWN, -6, "unknown quant"),
        ("llama_model_load: error loading model: missing tensor 'x'\n", 1, "missing tensor 'x'"),
        ("0.1 E srv load_model: failed to load\n", 1, "srv load_model: failed to load"),
        ("", -11, "llama.cpp ended with signal 11"),
        ("", 3, "llama.cpp ended with exit code 3"),
    ],
)
def test_the_reason_is_the_loaders_own_line(said: str, code: int, reason: str) -> None:
    assert reason_of(said, code) == reason


def test_a_debuggers_backtrace_is_left_out_of_the_log() -> None:
    kept = last_lines(BACKTRACE)
    assert any("GGML_ASSERT" in line for line in kept)
    assert not any("ggml_print_backtrace" in line or "LWP" in line for line in kept)
