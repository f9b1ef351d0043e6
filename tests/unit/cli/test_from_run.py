"""From one place to a request: ``submit RUN`` as far as it comes without a service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_client.cli.flags import RequestFlags, complete_checkpoint, in_flags
from api_client.cli.from_run import asked_for
from api_client.cli.output import standard_output
from api_client.contract.errors import PackagingError
from api_client.contract.request import PackagingRequest
from tests.tiny import one_value
from tests.unit.cli.conftest import Ran


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """The run, whose adapters name the base model and whose first checkpoint scored best."""
    for name in ("checkpoint-1", "checkpoint-2"):
        config = {"base_model_name_or_path": str(tmp_path / "base")}
        (run_dir / name / "adapter_config.json").write_text(json.dumps(config))
    history = [{"step": 1, "eval_loss": 0.5}, {"step": 2, "eval_loss": 0.75}]
    (run_dir / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": history}))
    return run_dir


def ask(place: object = None, **flags: Any) -> PackagingRequest:
    place = None if place is None else str(place)
    return asked_for(place, RequestFlags(**flags), standard_output(as_json=False), sees_files=True)


def full_weights(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(one_value())
    (directory / "config.json").write_text("{}")
    return directory


def test_a_run_is_its_best_checkpoint_on_the_base_that_it_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = ask(run)
    assert request.checkpoint == str(run / "checkpoint-1")
    assert request.base_model == str(tmp_path / "base")
    assert request.output_dir == str(run / "package" / "checkpoint-1")
    assert request.template == "merge_quantize"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "checkpoint-1, the best of 2 by eval_loss 0.5"


def test_without_scores_it_is_the_latest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "trainer_state.json").unlink()
    assert ask(run).checkpoint == str(run / "checkpoint-2")
    assert "checkpoint-2, the latest of 2" in capsys.readouterr().err


def test_the_working_directory_stands_for_itself(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(run)
    assert ask() == ask(run)
    (run / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"")
    (run / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(PackagingError, match="none of which can be packaged"):
        ask()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackagingError) as caught:
        ask()
    assert caught.value.code == "checkpoint_required"


def test_flags_decide(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    request = ask(run, checkpoint="latest", base=str(other), output=str(tmp_path / "out"), quant_type=["Q8_0"])
    assert (request.checkpoint, request.base_model) == (str(run / "checkpoint-2"), str(other))
    assert (request.output_dir, request.quant_types) == (str(tmp_path / "out"), ("Q8_0",))
    base_alone = ask(run, template="quantize_base")
    assert (base_alone.checkpoint, base_alone.base_model) == (None, str(tmp_path / "base"))


@pytest.mark.parametrize("below", ["checkpoint-2", "checkpoint-2/adapter_config.json", "latest"])
def test_a_checkpoint_stands_for_itself(run: Path, below: str) -> None:
    request = ask(run / below)
    assert request.checkpoint == str(run / "checkpoint-2")
    assert request.output_dir == str(run / "package" / "checkpoint-2")


def test_full_weights_are_quantized(tmp_path: Path) -> None:
    model = full_weights(tmp_path / "tuned")
    request = ask(model)
    assert (request.template, request.base_model, request.checkpoint) == ("quantize_base", str(model), None)
    assert request.output_dir == str(model / "package")
    step = full_weights(tmp_path / "full-run" / "checkpoint-7")
    request = ask(step.parent)
    assert (request.template, request.checkpoint) == ("quantize_base", str(step))


def test_the_default_directory_is_one_in_which_nothing_is_in_the_way(run: Path) -> None:
    first = Path(str(ask(run).output_dir))
    first.mkdir(parents=True)
    (first / "manifest.json").write_text("{}")
    assert ask(run).output_dir == str(first)
    (first / "merged_model.gguf").touch()
    assert ask(run).output_dir == f"{first}-2"
    assert ask(run, template="lora_only").output_dir == str(first)
    assert ask(run, overwrite=True).output_dir == str(first)


def test_what_is_in_the_way_is_known_before_anything_is_queued(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "merged_model.gguf").touch()
    with pytest.raises(PackagingError, match=r"has merged_model\.gguf already"):
        ask(run, output=str(tmp_path / "out"))
    ask(run, output=str(tmp_path / "out"), model_name="other")
    ask(run, output=str(tmp_path / "out"), idempotency_key="the same job again")


@pytest.mark.parametrize(
    ("place", "code", "told"),
    [
        ("run/checkpoint-99", "checkpoint_not_found", "did you mean checkpoint-2?"),
        ("rum", "checkpoint_not_found", "did you mean {tmp}/run?"),
        ("base", "checkpoints_empty", "base has no checkpoint-* directory"),
        ("hf://owner/name", "request_invalid", "not known before it is fetched"),
    ],
)
def test_a_place_that_means_nothing_is_refused_for_what_it_is(
    run: Path, tmp_path: Path, place: str, code: str, told: str
) -> None:
    with pytest.raises(PackagingError) as caught:
        ask(place if "://" in place else tmp_path / place)
    assert caught.value.code == code
    assert told.format(tmp=tmp_path) in caught.value.message


def test_a_misspelt_checkpoint_is_reported_before_the_base_that_it_would_have_named(
    cli: Callable[..., Ran], run: Path, tmp_path: Path
) -> None:
    ran = cli("submit", "-c", run / "checkpoint-99", "-o", tmp_path / "out", "--json")
    assert ran.error["code"] == "checkpoint_not_found"
    assert "There are: checkpoint-1, checkpoint-2." in ran.error["remedy"]


def test_errors_speak_of_flags(cli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = cli("submit", "-t", "quantize_base", "-b", tmp_path / "gone", "-o", tmp_path / "out", "--json")
    assert ran.error["message"] == f"base_model: {tmp_path / 'gone'} does not exist"
    assert ran.error["remedy"] == "Correct `--base`."
    ran = cli("submit", "-t", "quantize_base", "-b", tmp_path / "gone", "-o", tmp_path / "out")
    assert f"--base: {tmp_path / 'gone'} does not exist" in ran.err
    assert in_flags("Set `overwrite`, or choose output_dir /a/output_dir/x and a checkpoint.") == (
        "Set `--overwrite`, or choose --output /a/output_dir/x and a checkpoint."
    )


def test_checkpoints_of_a_checkpoint_are_those_of_its_run(
    cli: Callable[..., Ran], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run = cli("checkpoints", run, "--json").document
    assert cli("checkpoints", run / "checkpoint-1", "--json").document == of_run
    monkeypatch.chdir(run)
    assert cli("checkpoints", "--json").document == of_run


def test_the_shell_completes_checkpoints_by_where_one_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert [*complete_checkpoint("")] == ["latest", "best", "checkpoint-1", "checkpoint-2"]
    assert [*complete_checkpoint("ch")] == ["checkpoint-1", "checkpoint-2"]
    assert [*complete_checkpoint(f"{run}/checkpoint-2")] == [f"{run}/checkpoint-2"]
    assert [*complete_checkpoint("/no/such/")] == ["/no/such/latest", "/no/such/best"]
