"""The run's own data, in directories laid out as each trainer leaves them, and how its samples are shared out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from config.roots import Roots
from worker.models.evaluate.datasets import read_samples
from worker.models.rundata.find import find_run_data
from worker.models.rundata.split import as_lines, digest_of, share_out

ALPACA = {"instruction": "Add 2 and 3.", "input": "", "output": "5"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def llama_factory(place: Path) -> tuple[Path, Path, Path]:
    """Started in its own checkout; ``saves/`` below it holds the run, ``data/`` what ``dataset_info.json`` lists."""
    run = place / "saves" / "Llama-3" / "lora" / "train_1"
    run.mkdir(parents=True)
    trained = write(place / "data" / "mine.json", ALPACA)
    held_out = write(place / "data" / "held.jsonl", CHAT)
    info = {
        "identity": {"file_name": "identity.json"},
        "mine": {"file_name": "mine.json", "columns": {"prompt": "instruction"}},
        "far": {"hf_hub_url": "someone/far"},
        "held": {"file_name": "held.jsonl", "formatting": "sharegpt"},
    }
    (place / "data" / "dataset_info.json").write_text(json.dumps(info))
    (run / "training_args.yaml").write_text(
        "bf16: true\ndataset: far,mine\ndataset_dir: data\neval_dataset: held\ntemplate: llama3\n"
    )
    return run, trained, held_out


def axolotl(place: Path) -> tuple[Path, Path, Path]:
    """The configuration is a block of the model card; paths are as seen from where it was started."""
    run = place / "outputs" / "lora"
    run.mkdir(parents=True)
    trained = write(place / "data" / "train.jsonl", CHAT)
    held_out = write(place / "data" / "test.jsonl", ALPACA)
    (run / "README.md").write_text(
        "---\nbase_model: a/b\ntags:\n- axolotl\ndatasets:\n- someone/hub\n---\n# card\n\n```yaml\nbase_model: a/b\n"
        "datasets:\n  - path: someone/else\n  - path: data/train.jsonl\n    type: chat_template\n"
        "test_datasets:\n  - path: json\n    data_files:\n      - data/test.jsonl\n```\n"
    )
    return run, trained, held_out


def swift(place: Path) -> tuple[Path, Path, Path]:
    """``args.json`` beside the checkpoints and in them; ``#N`` takes a part of a file."""
    run = place / "output" / "v0-20261129"
    run.mkdir(parents=True)
    trained, held_out = write(place / "d" / "a.jsonl", CHAT), write(place / "d" / "v.jsonl", CHAT)
    args = {"dataset": ["AI-ModelScope/alpaca#500", f"{trained}#200"], "val_dataset": [str(held_out)], "model": "/m"}
    (run / "args.json").write_text(json.dumps(args))
    return run, trained, held_out


def trl(place: Path) -> tuple[Path, Path, None]:
    """The trainer's state names no data; the model card's front matter does."""
    run = place / "run"
    run.mkdir()
    (run / "trainer_state.json").write_text('{"global_step": 10}')
    trained = write(place / "chats.jsonl", CHAT)
    (run / "README.md").write_text(f"---\ndatasets:\n- trl-lib/Capybara\n- {trained}\nlibrary_name: peft\n---\n# x\n")
    return run, trained, None


@pytest.mark.parametrize("layout", [llama_factory, axolotl, swift, trl])
def test_each_trainer_s_note_leads_to_its_files(
    tmp_path: Path, layout: Callable[[Path], tuple[Path, Path, Path | None]]
) -> None:
    run, trained, held_out = layout(tmp_path)
    checkpoint = run / "checkpoint-10"
    checkpoint.mkdir()
    found = find_run_data([checkpoint, run], Roots.only(tmp_path))
    assert (found.path, found.held_out, found.passed_over) == (trained, held_out, ())
    assert (run / found.named_by).is_file()


def test_what_lies_outside_the_roots_or_is_of_no_shape_is_passed_over_and_said(tmp_path: Path) -> None:
    run = tmp_path / "inside" / "run"
    run.mkdir(parents=True)
    outside = write(tmp_path / "outside.jsonl", CHAT)
    link = run / "link.jsonl"
    link.symlink_to(outside)
    odd = write(run / "odd.jsonl", {"question": "a", "answer": "b"})
    args = {"dataset": [str(outside), "link.jsonl", str(odd), str(run / "gone.jsonl")]}
    (run / "args.json").write_text(json.dumps(args))
    found = find_run_data([run], Roots.only(tmp_path / "inside"))
    assert found.path is None
    assert len(found.passed_over) == 4
    assert "outside.jsonl" in found.passed_over[0]
    assert str(outside) not in found.passed_over[1], "where a link leads is not told"
    assert "the keys question, answer" in found.passed_over[2]
    assert "is not here" in found.passed_over[3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("args.json", "{"),
        ("args.json", "[1]"),
        ("args.json", '{"dataset": [1, null, {"a": 2}]}'),
        ("training_args.yaml", "dataset: [\n"),
        ("training_args.yaml", "dataset: x\n"),
        ("config.yml", "datasets:\n- 1\n- path: [2]\n"),
        ("config.yml", "- &a [*a]\n"),
        ("README.md", "---\ndatasets: 5\n---\n"),
        ("training_args.bin", "a pickle is never opened"),
    ],
)
def test_a_note_that_cannot_be_read_names_nothing(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert find_run_data([tmp_path], Roots.anywhere()).path is None


def test_a_sample_is_on_one_side_wherever_it_stands(tmp_path: Path) -> None:
    records = [{"text": f"sample {number}"} for number in range(400)]
    chats = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"{n}"}]} for n in range(400)]
    first = share_out(write(tmp_path / "a.jsonl", *records, *chats), None)
    again = share_out(write(tmp_path / "b.jsonl", *reversed(chats), *records, *records[:9]), None)
    measured, calibration = ({digest_of(one) for one in side} for side in (first.measured, first.calibration))
    assert not measured & calibration
    assert len(measured | calibration) == 800
    assert 140 < len(measured) < 260, "about a quarter"
    assert {digest_of(one) for one in again.measured} == measured
    assert {digest_of(one) for one in again.calibration} == calibration


def test_held_out_data_is_measured_on_and_kept_out_of_the_calibration(tmp_path: Path) -> None:
    trained = write(tmp_path / "t.jsonl", *({"text": f"t{number}"} for number in range(8)), CHAT)
    held_out = write(tmp_path / "h.jsonl", {"text": "h"}, {"text": "t3"}, {"prompt": "Hi", "completion": "Hello"})
    shares = share_out(trained, held_out)
    assert [one.text for one in shares.measured] == ["h", "t3", ""]
    assert [one.text for one in shares.calibration] == ["t0", "t1", "t2", "t4", "t5", "t6", "t7"]
    path = tmp_path / "again.jsonl"
    path.write_text(as_lines(shares.measured))
    assert list(read_samples(path).samples) == list(shares.measured)


def test_one_sample_is_measured_on_and_not_calibrated_with(tmp_path: Path) -> None:
    for number in range(6):
        shares = share_out(write(tmp_path / "one.jsonl", {"text": f"only {number}"}), None)
        assert (len(shares.measured), len(shares.calibration)) == (1, 0)
