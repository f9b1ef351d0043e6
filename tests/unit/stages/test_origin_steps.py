"""A file that departed from its training somewhere on the way: the report names where. Through the real stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from api_client.contract.quality import QualityReport, StepState, StepWord
from tests.harness import RecordingReporter, run_stages
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from tests.unit.stages.conftest import TinyRun
from worker.models.gguf.reader import open_gguf

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


TOOLS_TEMPLATE = (
    "{{ bos_token }}{% if tools %}[tools]{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    "call them as <tool_call>{% endif %}" + TEMPLATE.removeprefix("{{ bos_token }}")
)


def wrong_tools(model: Path) -> None:
    """Other words where tools are listed, and nowhere else."""
    replaced(model, b"call them as <tool_call>", b"call them as <tool_used>")


def scale_b(checkpoint: Path) -> None:
    """Halve every B."""
    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * 0.5 if "lora_B" in n else t for n, t in tensors.items()}, path, metadata={"format": "pt"})


def leave_out_a_layer(checkpoint: Path) -> None:
    """Take the last layer's matrices out."""
    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in tensors.items() if "layers.1." not in n}, path, metadata={"format": "pt"})


def replaced(model: Path, old: bytes, new: bytes) -> None:
    """Change bytes of a file's header; its layout stays."""
    assert len(old) == len(new)
    data = model.read_bytes()
    assert data.count(old) == 1
    model.write_bytes(data.replace(old, new))


def wrong_template(model: Path) -> None:
    """Other brackets around the role."""
    replaced(model, b"[{{ m.role }}] {{ m.content }}", b"({{ m.role }}) {{ m.content }}")


def wrong_end_token(model: Path) -> None:
    """The begin token in the place of the end token."""
    with open_gguf(model) as file:
        assert file.metadata["tokenizer.ggml.eos_token_id"].value == 2
    key = b"tokenizer.ggml.eos_token_id" + (4).to_bytes(4, "little")
    replaced(model, key + (2).to_bytes(4, "little"), key + (1).to_bytes(4, "little"))


@pytest.fixture
def chat(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """A run whose template ends answers with the end token; tokenizer.json alone, which llama.cpp reads alike."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tiny.base)
    (tiny.base / "tokenizer.model").unlink()
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 60))
    return tiny


def report_of(
    run: TinyRun,
    tmp_path: Path,
    *,
    before_merge: Callable[[Path], None] | None = None,
    after_convert: Callable[[Path], None] | None = None,
    on_fail: str = "fail",
) -> tuple[QualityReport, RecordingReporter]:
    """Run the stages with a damage on the way.

    The adapter is damaged for the merge alone: what lies in the checkpoint afterwards is what was trained.
    """  # fmt: skip
    wanted = {"text": tmp_path / "text.txt", "on_fail": on_fail}
    request = run.request(template="merge", evaluation=wanted, overwrite=True)
    scratch, reporter = tmp_path / "scratch", RecordingReporter()
    done = run_stages(request, scratch, until=StageName.PREPARE)
    if before_merge is not None:
        weights = run.checkpoint / "adapter_model.safetensors"
        trained = weights.read_bytes()
        before_merge(run.checkpoint)
        done = run_stages(request, scratch, until=StageName.MERGE, done=done)
        weights.write_bytes(trained)
    done = run_stages(request, scratch, until=StageName.VERIFY, done=done)
    if after_convert is not None:
        after_convert(Path(done[StageName.CONVERT].artifacts[0].path))
    run_stages(request, scratch, done=done, reporter=reporter)
    return QualityReport.model_validate_json((run.output / "quality.json").read_bytes()), reporter


def test_an_undamaged_file_is_the_trained_model_at_every_step(chat: TinyRun, tmp_path: Path) -> None:
    report, reporter = report_of(chat, tmp_path)
    assert [(step.step, step.state) for step in report.origin] == [(word, StepState.SAME) for word in StepWord], (
        report.origin
    )
    assert report.first_difference() is None
    assert not [line for level, line in reporter.lines if level == "warning"]


def test_a_head_that_is_the_embedding_is_traced_too(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", tied=True)
    run = TinyRun(base, tmp_path / "run", tiny_checkpoint(base, tmp_path / "run"), tmp_path / "out")
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 60))
    states = {step.step: step.state for step in report_of(run, tmp_path)[0].origin}
    assert [states[word] for word in (StepWord.MERGE, StepWord.CONVERSION, StepWord.LOGITS)] == [StepState.SAME] * 3


@pytest.mark.parametrize("damage", [scale_b, leave_out_a_layer])
def test_what_the_merge_lost_is_named(chat: TinyRun, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    sound, _ = report_of(chat, tmp_path)
    whole = chat.output / "merged_model.gguf"
    published = whole.read_bytes()
    with pytest.raises(PackagingError) as caught:
        report_of(chat, tmp_path, before_merge=damage)
    assert caught.value.code is ErrorCode.QUALITY_BELOW_THRESHOLD
    assert (caught.value.fields["figure"], caught.value.fields["step"]) == ("origin", StepWord.MERGE)
    assert "does not predict as the model that was trained" in caught.value.message
    assert "Replay from prepare" in str(caught.value.failure.remedy)
    assert whole.read_bytes() == published, "nothing is published"

    report, reporter = report_of(chat, tmp_path, before_merge=damage, on_fail="warn")
    first = report.first_difference()
    assert first is not None
    assert first.step is StepWord.MERGE
    changed = 14 if damage is scale_b else 7
    assert f"{changed} of" in first.fact
    assert ("layers.0." if damage is scale_b else "layers.1.") in first.fact
    states = {step.step: step.state for step in report.origin}
    assert states[StepWord.CONVERSION] is StepState.SAME, "the fault was there before"
    assert states[StepWord.LOGITS] is StepState.DIFFERS
    assert any("differs from the training at merge" in line for _, line in reporter.lines)
    assert sound.training is not None
    assert report.training is not None
    assert report.training.mean_kld.value < 0.9 * sound.training.mean_kld.value, "measured anew: the file is another"


@pytest.mark.parametrize(
    ("damage", "step", "fact"),
    [(wrong_template, StepWord.TEMPLATE, "a single turn"), (wrong_end_token, StepWord.END_TOKEN, "1 (<s>)")],
)
def test_what_the_file_says_otherwise_is_named(
    chat: TinyRun, tmp_path: Path, damage: Callable[[Path], None], step: StepWord, fact: str
) -> None:
    report, _ = report_of(chat, tmp_path, after_convert=damage)
    first = report.first_difference()
    assert first is not None
    assert first.step is step, report.origin
    assert fact in first.fact
    assert all(
        each.state is StepState.SAME
        for each in report.origin
        if each.step in (StepWord.MERGE, StepWord.CONVERSION, StepWord.TOKENIZER, StepWord.LOGITS)
    )


def test_a_template_with_tools_is_compared_token_by_token(chat: TinyRun, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat.base)
    tokenizer.chat_template = TOOLS_TEMPLATE
    tokenizer.save_pretrained(chat.base)
    steps = {step.step: step for step in report_of(chat, tmp_path)[0].origin}
    assert steps[StepWord.TEMPLATE].state is StepState.SAME, steps
    assert "a system message, tools, no generation prompt" in steps[StepWord.TEMPLATE].fact
    assert steps[StepWord.TOKENIZER].state is StepState.SAME
    assert " of 5 prompts " in steps[StepWord.TOKENIZER].fact

    report, reporter = report_of(chat, tmp_path, after_convert=wrong_tools)
    first = report.first_difference()
    assert first is not None
    assert first.step is StepWord.TEMPLATE
    assert first.fact.startswith("tools: character "), first.fact
    assert "used>" in first.fact
    assert any("differs from the training at template: tools" in line for _, line in reporter.lines)
