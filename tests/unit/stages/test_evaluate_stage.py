"""The evaluate stage on a tiny model: what it reports, what it refuses, and that a replay runs nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import ArtifactKind, StageName
from api_client.contract.quality import QualityReport
from api_client.contract.request import Options, PackagingRequest
from tests.harness import RecordingReporter, run_stages
from tests.tiny import TAUGHT_ANSWER, TAUGHT_QUESTION, TEXT, taught_run
from tests.unit.stages.conftest import TinyRun
from worker.models.gguf.reader import open_gguf
from worker.models.questions.files import read_questions
from worker.stages.evaluate import QUICK_TOKENS
from worker.storage.checksums import parse_checksums


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Enough of the text that the tokenizer was made of for a few chunks."""
    path = tmp_path / "text.txt"
    path.write_text("=== first\n" + "\n".join(TEXT * 60) + "\n=== second\n" + "\n".join(reversed(TEXT * 60)))
    return path


def test_every_file_is_measured_and_the_report_published(tiny: TinyRun, text: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    request = tiny.request(quant_types=["Q8_0", "Q4_0"], gguf_dtype="f32", evaluation={"text": text}, companions=True)
    results = run_stages(request, tmp_path / "scratch", reporter=reporter)

    report = QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())
    assert [file.name for file in report.files] == [
        "merged_model.gguf", "merged_model-Q8_0.gguf", "merged_model-Q4_0.gguf"
    ]  # fmt: skip
    whole, q8, q4 = (file.overall for file in report.files)
    assert whole is not None
    assert q8 is not None
    assert q4 is not None
    assert whole.mean_kld.value < 1e-7 < q8.mean_kld.value < q4.mean_kld.value
    assert whole.same_top.value == 1.0
    assert set(report.scored) == set(report.files[1].parts) == {"first", "second"}
    assert q8.tokens == sum(report.scored.values()) == sum(part.tokens for part in report.files[1].parts.values())
    # the mean over all can be made again from the parts
    parts = report.files[2].parts.values()
    again = sum(part.mean_kld.value * part.tokens for part in parts) / q4.tokens
    assert again == pytest.approx(q4.mean_kld.value)
    assert report.training_measurable
    assert report.architecture == "llama"  # under which recommendations are told of it
    kept = [file.retention.value for file in report.files if file.retention is not None]
    assert 1.0 >= kept[0] > kept[1] > kept[2]
    assert "quality.json" in parse_checksums((tiny.output / "SHA256SUMS").read_text())
    manifest = json.loads((tiny.output / "manifest.json").read_text())
    told = manifest["stages"]["evaluate"]["facts"]["files"]["merged_model-Q4_0.gguf"]
    assert told["mean_kld"]["value"] == q4.mean_kld.value
    card = (tiny.output / "README.md").read_text()
    assert f"{q4.mean_kld.value:.4f} ±" in card
    assert any("of the training kept" in line for _, line in reporter.lines)
    assert results[StageName.EVALUATE].artifacts[0].kind is ArtifactKind.QUALITY


def test_it_is_the_default_and_takes_the_shipped_text(tiny: TinyRun, tmp_path: Path) -> None:
    request = PackagingRequest(
        template="merge", base_model=tiny.base, checkpoint=tiny.checkpoint, output_dir=tiny.output
    )
    run_stages(request, tmp_path / "scratch")
    report = QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())
    assert report.source is not None
    assert report.source.kind == "shipped"
    assert 0 < report.tokens <= QUICK_TOKENS < 512 * report.source.samples
    assert len(report.scored) > 3, "a beginning of it has something of every part"


def test_what_killed_two_attempts_is_not_begun_a_third_time(tiny: TinyRun, tmp_path: Path) -> None:
    request = tiny.request(template="merge", evaluation="quick")
    done = run_stages(request, tmp_path / "scratch", until=StageName.VERIFY)
    mark = tmp_path / "scratch" / "evaluation.begun"
    mark.write_bytes(b"..")
    run_stages(request, tmp_path / "scratch", done=done)
    report = QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())
    assert "for want of memory" in str(report.files[0].not_judged)
    assert not mark.exists(), "a replay begins anew"


def test_questions_are_asked_of_all_and_once(tiny: TinyRun, text: Path, tmp_path: Path) -> None:
    def run(*, reporter: RecordingReporter | None = None, **wanted: object) -> QualityReport:
        evaluation = {"text": text, **wanted}
        request = tiny.request(quant_types=["Q8_0"], gguf_dtype="f32", evaluation=evaluation, overwrite=True)
        run_stages(request, tmp_path / "scratch", reporter=reporter)
        return QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())

    prompts = [TEXT[0], "How many files are lost?"]
    asked = run(questions=prompts).questions
    assert [question.question for question in asked] == prompts
    for question in asked:
        said = {answer.by: answer.text for answer in question.answers}
        assert list(said) == ["reference", "merged_model.gguf", "merged_model-Q8_0.gguf"]
        # this template names no begin token and llama.cpp puts one there, so a random model answers otherwise
        assert all(text for text in said.values())

    kept = (tmp_path / "scratch" / "answers.json").stat().st_mtime_ns
    right = {prompts[0]: asked[0].answers[-1].text[:9].upper(), prompts[1]: ""}
    again = run(questions=right).questions
    assert again[0].answers[-1].expected_found is True
    assert again[1].answers[-1].expected_found is None
    wrong = {prompts[0]: "what no random model says", prompts[1]: ""}
    with pytest.raises(PackagingError) as caught:
        run(questions=wrong)
    assert caught.value.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    assert (caught.value.fields["figure"], caught.value.fields["question"]) == ("answer", prompts[0])
    warned = RecordingReporter()
    run(questions=wrong, on_fail="warn", reporter=warned)
    assert any(level == "warning" and "without 'what no random model says'" in line for level, line in warned.lines)
    assert (tmp_path / "scratch" / "answers.json").stat().st_mtime_ns == kept, "nothing was asked twice"


def test_a_taught_answer_is_the_same_from_the_trained_model_and_from_every_file(text: Path, tmp_path: Path) -> None:
    base, checkpoint = taught_run(tmp_path)

    def said(name: str, **fields: Any) -> dict[str, str]:
        asking = {"text": text, "questions": {TAUGHT_QUESTION: TAUGHT_ANSWER}, "on_fail": "warn"}
        request = PackagingRequest(
            base_model=base, output_dir=tmp_path / name, gguf_dtype="f32", evaluation=asking, **fields
        )
        run_stages(request, tmp_path / f"scratch-{name}")
        report = QualityReport.model_validate_json((tmp_path / name / "quality.json").read_bytes())
        return {answer.by: answer.text for question in report.questions for answer in question.answers}

    tuned = said("tuned", checkpoint=checkpoint, quant_types=["Q8_0", "Q5_0"])
    assert tuned == dict.fromkeys(
        ["reference", "merged_model.gguf", "merged_model-Q8_0.gguf", "merged_model-Q5_0.gguf"], TAUGHT_ANSWER
    )
    untuned = said("untuned", template="custom", options=Options(merge_lora=False, quantize=False))
    assert set(untuned.values()) == {TEXT[0]}
    assert len(untuned) == 2


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("q.jsonl", "", "holds no question"),
        ("q.jsonl", "{]", "is no JSON"),
        ("q.json", '[{"question": "a"}]', "question 1 is neither a text nor a prompt"),
        ("q.json", '[{"prompt": "a", "expected": "' + "x" * 501 + '"}]', "at most 500"),
    ],
    ids=["empty", "no JSON", "unknown shape", "too long"],
)
def test_a_file_of_questions_is_refused_before_anything_is_made(
    tiny: TinyRun, tmp_path: Path, name: str, content: str, fact: str
) -> None:
    (tmp_path / name).write_text(content)
    request = tiny.request(evaluation={"questions_file": tmp_path / name})
    with pytest.raises(PackagingError, match=fact) as caught:
        run_stages(request, tmp_path / "scratch", until=StageName.PREPARE)
    assert caught.value.code is ErrorCode.REQUEST_INVALID


def test_a_file_of_questions_is_read_in_its_three_forms(tmp_path: Path) -> None:
    wanted = {"What is it?": "a file", "And then?": ""}
    forms = {
        "q.jsonl": '{"prompt": "What is it?", "expected": "a file"}\n"And then?"\n',
        "q.json": '[{"prompt": "What is it?", "expected": "a file"}, "And then?"]',
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        assert read_questions(tmp_path / name) == wanted
    (tmp_path / "q.txt").write_text("What is it?\n\nAnd then?\n")
    assert read_questions(tmp_path / "q.txt") == dict.fromkeys(wanted, "")


def test_the_run_s_own_data_is_found_measured_on_and_calibrated_with(tiny: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    records = [
        {"messages": [{"role": "user", "content": f"{n} {TEXT[0]}"}, {"role": "assistant", "content": TEXT[1] * 4}]}
        for n in range(60)
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    (tiny.run / "args.json").write_text(json.dumps({"dataset": [f"{data}#60"]}))
    reporter = RecordingReporter()
    request = tiny.request(quant_types=["Q8_0"], imatrix={"chunks": 2}, evaluation="quick")
    run_stages(request, tmp_path / "scratch", reporter=reporter)
    report = QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())
    assert report.source is not None
    assert (report.source.kind, report.source.name) == ("run", "train.jsonl")
    assert report.source.samples == len((tmp_path / "scratch/measured.jsonl").read_text().splitlines()) < 30
    said = " | ".join(line for _, line in reporter.lines)
    assert "The run's own data, by args.json: train.jsonl" in said
    assert "tokens of train.jsonl and trainpack-calibration" in said
    assert b"train.jsonl" in (tiny.output / "merged_model.imatrix.gguf").read_bytes()
    assert str(data) not in (tiny.output / "manifest.json").read_text()


def test_named_data_is_kept_out_of_what_is_computed_from_the_run_s(tiny: TinyRun, tmp_path: Path) -> None:
    data, named = tmp_path / "train.jsonl", tmp_path / "named.jsonl"
    lines = [
        json.dumps({"prompt": f"{n} {TEXT[0]}", "completion": f"{word} " * 60}) + "\n"
        for n, word in enumerate(["lost", "files"] * 30)
    ]
    data.write_text("".join(lines))
    named.write_text("".join(lines[0::2]))  # every sample that says "lost"
    (tiny.run / "args.json").write_text(json.dumps({"dataset": [str(data)]}))
    reporter = RecordingReporter()
    request = tiny.request(quant_types=["fit:like:Q8_0"], imatrix={"chunks": 2}, evaluation={"dataset": str(named)})
    done = run_stages(request, tmp_path / "scratch", until=StageName.PREPARE)
    texts = {}
    for stage in (StageName.IMATRIX, StageName.SENSITIVITY):
        done = run_stages(request, tmp_path / "scratch", until=stage, done=done, reporter=reporter)
        (made,) = done[stage].artifacts
        texts[stage] = Path(made.path).read_bytes()
    assert all(b"train.jsonl and trainpack-calibration" in content for content in texts.values())
    said = [line for _, line in reporter.lines]
    told = "30 of 60 samples of train.jsonl are also in named.jsonl, which is measured on, and are not calibrated with"
    assert said.count(told) == 2, said
    assert sum(line.startswith("Sensitivities from") and "train.jsonl" in line for line in said) == 1

    named.write_text("".join(lines))
    alone = RecordingReporter()
    again = tiny.request(quant_types=["IQ2_S"], imatrix={"chunks": 2}, evaluation={"dataset": str(named)})
    run_stages(again, tmp_path / "again", until=StageName.IMATRIX, reporter=alone)
    warned = [line for level, line in alone.lines if level == "warning"]
    assert "No sample of train.jsonl is left to calibrate with" in warned
    assert any("calibration text shipped" in line for line in warned)


def test_a_damaged_weight_is_seen(tiny: TinyRun, text: Path, tmp_path: Path) -> None:
    """One layer's projection halved on its way: what verify lets pass, since the file loads and answers."""
    request = tiny.request(template="merge", evaluation={"text": text, "max_mean_kld": 0.001}, gguf_dtype="f32")
    done = run_stages(request, tmp_path / "scratch", until=StageName.VERIFY)
    (model,) = done[StageName.CONVERT].artifacts
    with open_gguf(Path(model.path)) as file:
        tensor = file.by_name["blk.1.ffn_down.weight"]
        start, size = file.data_offset + tensor.offset, tensor.size_bytes
    import numpy as np

    data = np.memmap(model.path, np.float32, "r+", start, (size // 4,))
    data[:] *= 0.5
    data.flush()
    with pytest.raises(PackagingError) as caught:
        run_stages(request, tmp_path / "scratch", done=done)
    assert caught.value.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    assert caught.value.fields["file"] == "merged_model.gguf"
    assert caught.value.fields["bound"] == 0.001
    assert not (tiny.output / "merged_model.gguf").exists()


def test_below_a_bound_nothing_is_published_and_a_replay_measures_nothing_again(
    tiny: TinyRun, text: Path, tmp_path: Path
) -> None:
    def request(bound: float, **more: object) -> PackagingRequest:
        wanted = {"text": text, "min_retention": bound, **more}
        return tiny.request(quant_types=["Q4_0"], gguf_dtype="f32", evaluation=wanted)

    with pytest.raises(PackagingError) as caught:
        run_stages(request(0.999999), tmp_path / "scratch")
    assert caught.value.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    assert "merged_model-Q4_0.gguf keeps" in caught.value.message
    assert not list(tiny.output.glob("*.gguf"))

    scores = tmp_path / "scratch" / "evaluation.npz"
    written = scores.stat().st_mtime_ns
    again = RecordingReporter()
    run_stages(request(0.1), tmp_path / "scratch", reporter=again)
    assert scores.stat().st_mtime_ns == written
    assert (tiny.output / "merged_model-Q4_0.gguf").exists()

    warned = RecordingReporter()
    run_stages(request(0.999999, on_fail="warn").model_copy(update={"overwrite": True}), tmp_path / "scratch",
               reporter=warned)  # fmt: skip
    assert any(level == "warning" and "keeps" in line for level, line in warned.lines)


@pytest.mark.parametrize(
    ("content", "code", "fact"),
    [
        ("", ErrorCode.DATASET_INVALID, "holds no record"),
        ('{"question": "a", "answer": "b"}\n', ErrorCode.DATASET_INVALID, "the keys question, answer"),
        ('{"messages": [}\n', ErrorCode.DATASET_INVALID, "line 1 is no JSON"),
    ],
    ids=["empty", "unknown shape", "no JSON"],
)
def test_data_that_cannot_be_used_is_refused_by_its_fact(
    tiny: TinyRun, tmp_path: Path, content: str, code: ErrorCode, fact: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content)
    with pytest.raises(PackagingError) as caught:
        run_stages(tiny.request(evaluation={"dataset": data}), tmp_path / "scratch", until=StageName.PREPARE)
    assert caught.value.code is code
    assert fact in caught.value.message


def test_chat_samples_go_through_the_packaged_template(tiny: TinyRun, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    records = [
        {"messages": [{"role": "user", "content": TEXT[0]}, {"role": "assistant", "content": TEXT[1]}]},
        {"conversations": [{"from": "human", "value": TEXT[0]}, {"from": "gpt", "value": TEXT[2]}]},
        {"instruction": TEXT[1], "input": "", "output": TEXT[3]},
        {"prompt": TEXT[2], "completion": TEXT[0]},
        {"text": TEXT[3]},
        {"unknown": 1},
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    run_stages(tiny.request(quant_types=["Q8_0"], evaluation={"dataset": data}), tmp_path / "scratch")
    report = QualityReport.model_validate_json((tiny.output / "quality.json").read_bytes())
    assert report.source is not None
    assert (report.source.samples, report.source.left_out) == (5, 1)
    assert report.source.left_out_reason == "record 6 has the keys unknown"
    assert set(report.scored) == {"chat", "text"}
