"""Listing a run's checkpoints and resolving references to them, on run directories built by hand."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.runs.checkpoints import (
    Checkpoint,
    CheckpointList,
    EmptyReason,
    choose_checkpoint,
    list_checkpoints,
    resolve_checkpoint,
)
from api_client.runs.files import LocalRunFiles
from api_client.runs.kinds import CheckpointKind
from api_client.runs.pick import pick

C = ErrorCode


def safetensors(elements: int = 4) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (4 * elements)


def adapter(directory: Path, elements: int = 4) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(safetensors(elements))


def state(directory: Path, step: int, history: list[Any] | None = None, **more: Any) -> None:
    data = {"global_step": step, "log_history": history or [], **more}
    (directory / "trainer_state.json").write_text(json.dumps(data))


def make_run(run: Path, scores: dict[int, dict[str, Any]], **newest: Any) -> Path:
    """A run with one adapter checkpoint per step; every state has the history up to its own step."""
    history = []
    for step, values in scores.items():
        history += [{"step": step, "loss": 1.0, "epoch": 1.0}, {"step": step, "eval_runtime": 3.0, **values}]
        adapter(run / f"checkpoint-{step}")
        state(run / f"checkpoint-{step}", step, list(history), **(newest if step == max(scores) else {}))
    return run


LOSSES: dict[int, dict[str, Any]] = {100: {"eval_loss": 2.0}, 200: {"eval_loss": 1.2}, 1000: {"eval_loss": 1.5}}


def named(listing: CheckpointList, name: str) -> Checkpoint:
    """The checkpoint of a name, which must be listed."""
    checkpoint = listing.find(name)
    assert checkpoint is not None, f"{name} is not listed"
    return checkpoint


def early_stopping(patience: int, waited: int) -> dict[str, Any]:
    return {
        "EarlyStoppingCallback": {
            "args": {"early_stopping_patience": patience, "early_stopping_threshold": 0.0},
            "attributes": {"early_stopping_patience_counter": waited},
        },
        "TrainerControl": {"args": {"should_training_stop": True}, "attributes": {}},
    }


def test_checkpoints_are_listed_by_step_with_size_kind_and_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path, LOSSES)
    (run / "checkpoint-200" / "optimizer.pt").write_bytes(b"x" * 5000)
    os.utime(run / "checkpoint-200" / "trainer_state.json", (1_700_000_000, 4_000_000_000))
    listing = list_checkpoints(run)
    assert [one.name for one in listing.checkpoints] == ["checkpoint-100", "checkpoint-200", "checkpoint-1000"]
    middle = named(listing, "checkpoint-200")
    assert (middle.step, middle.kind, middle.scores) == (200, CheckpointKind.ADAPTER, {"eval_loss": 1.2})
    assert middle.weights_bytes == len(safetensors())
    assert middle.size_bytes > 5000 + middle.weights_bytes
    assert middle.time.timestamp() == 4_000_000_000
    assert middle.path == str(run / "checkpoint-200")
    assert (listing.latest, listing.best, listing.metric) == ("checkpoint-1000", "checkpoint-200", "eval_loss")
    assert listing.greater_is_better is False
    assert listing.best_recorded is False
    assert listing.empty_reason is None


@pytest.mark.parametrize(
    "recorded", ["/gone/elsewhere/checkpoint-100", "C:\\runs\\checkpoint-100", "./out/checkpoint-100"]
)
def test_the_recorded_best_is_found_by_name_although_the_run_has_moved(tmp_path: Path, recorded: str) -> None:
    listing = list_checkpoints(make_run(tmp_path, LOSSES, best_model_checkpoint=recorded, best_metric=2.0))
    assert (listing.best, listing.best_recorded) == ("checkpoint-100", True)


def test_the_recorded_step_counts_where_no_name_is_recorded(tmp_path: Path) -> None:
    listing = list_checkpoints(make_run(tmp_path, LOSSES, best_global_step=1000, best_metric=1.5))
    assert (listing.best, listing.best_recorded) == ("checkpoint-1000", True)


def test_a_recorded_best_that_was_deleted_gives_way_to_the_best_that_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, LOSSES, best_model_checkpoint="/r/checkpoint-200", best_metric=1.2)
    for file in (run / "checkpoint-200").iterdir():
        file.unlink()
    (run / "checkpoint-200").rmdir()
    listing = list_checkpoints(run)
    assert (listing.best, listing.best_recorded, listing.metric) == ("checkpoint-1000", False, "eval_loss")


def test_a_metric_to_maximise_is_recognised_by_the_recorded_value(tmp_path: Path) -> None:
    scores = {
        10: {"eval_f1": 0.5, "eval_loss": 1.0},
        20: {"eval_f1": 0.9, "eval_loss": 3.0},
        30: {"eval_f1": 0.7, "eval_loss": 2.0},
    }
    listing = list_checkpoints(make_run(tmp_path, scores, best_model_checkpoint="/gone/checkpoint-20", best_metric=0.9))
    assert (listing.best, listing.metric, listing.greater_is_better) == ("checkpoint-20", "eval_f1", True)


def test_a_single_metric_that_is_no_loss_is_maximised(tmp_path: Path) -> None:
    listing = list_checkpoints(make_run(tmp_path, {1: {"eval_accuracy": 0.2}, 2: {"eval_accuracy": 0.1}}))
    assert (listing.best, listing.greater_is_better) == ("checkpoint-1", True)


def test_several_metrics_with_none_deciding_leave_best_open(tmp_path: Path) -> None:
    run = make_run(tmp_path, {1: {"eval_a": 0.2, "eval_b": 3}, 2: {"eval_a": 0.1, "eval_b": 4}})
    assert list_checkpoints(run).best is None
    with pytest.raises(PackagingError, match="no evaluation scores") as caught:
        resolve_checkpoint("best", run)
    assert caught.value.code is C.CHECKPOINT_NOT_FOUND
    assert "checkpoint-1, checkpoint-2" in caught.value.remedy


def test_a_score_that_is_not_finite_is_shown_as_absent_and_never_best(tmp_path: Path) -> None:
    listing = list_checkpoints(make_run(tmp_path, {1: {"eval_loss": 2.0}, 2: {"eval_loss": float("nan")}}))
    assert named(listing, "checkpoint-2").scores == {"eval_loss": None}
    assert listing.best == "checkpoint-1"
    json.loads(listing.model_dump_json(), parse_constant=pytest.fail)


def test_a_tie_goes_to_the_earlier_checkpoint(tmp_path: Path) -> None:
    assert list_checkpoints(make_run(tmp_path, {5: {"eval_loss": 1}, 6: {"eval_loss": 1}})).best == "checkpoint-5"


def test_a_checkpoint_s_own_state_wins_over_the_newest_and_the_newest_fills_gaps(tmp_path: Path) -> None:
    adapter(tmp_path / "checkpoint-1")
    adapter(tmp_path / "checkpoint-2")
    state(tmp_path / "checkpoint-1", 1, [{"step": 1, "eval_loss": 5.0}])
    state(tmp_path / "checkpoint-2", 2, [{"step": 1, "eval_loss": 9.0, "eval_acc": 0.1}, {"step": 2, "eval_loss": 6.0}])
    listing = list_checkpoints(tmp_path)
    assert named(listing, "checkpoint-1").scores == {"eval_loss": 5.0, "eval_acc": 0.1}
    assert listing.best == "checkpoint-1"


def test_the_run_s_own_state_knows_the_last_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, {1: {"eval_loss": 3.0}, 2: {}})
    history = [{"step": 1, "eval_loss": 3.0}, {"step": 2, "eval_loss": 1.0}]
    state(run, 2, history, best_model_checkpoint="/x/checkpoint-2", best_metric=1.0)
    listing = list_checkpoints(run)
    assert named(listing, "checkpoint-2").scores == {"eval_loss": 1.0}
    assert (listing.best, listing.best_recorded) == ("checkpoint-2", True)


@pytest.mark.parametrize(("waited", "stopped_at", "before"), [(3, 1000, "checkpoint-200"), (2, None, None)])
def test_the_last_checkpoint_before_early_stopping_is_named(
    tmp_path: Path, waited: int, stopped_at: int | None, before: str | None
) -> None:
    listing = list_checkpoints(make_run(tmp_path, LOSSES, stateful_callbacks=early_stopping(3, waited)))
    assert (listing.stopped_early_at, listing.before_early_stopping) == (stopped_at, before)
    assert listing.latest == "checkpoint-1000"


def test_empty_lists_say_why(tmp_path: Path) -> None:
    missing = list_checkpoints(tmp_path / "gone")
    assert missing.empty_reason is EmptyReason.DIRECTORY_MISSING
    assert str(tmp_path / "gone") in str(missing.explanation)
    assert list_checkpoints(tmp_path).empty_reason is EmptyReason.NO_CHECKPOINTS
    full = tmp_path / "full"
    full.mkdir()
    (full / "model.safetensors").write_bytes(safetensors())
    assert list_checkpoints(full).empty_reason is EmptyReason.NOT_LORA
    own = tmp_path / "own"
    adapter(own)
    assert "adapter itself" in str(list_checkpoints(own).explanation)
    for where, reason in ((tmp_path / "gone", "directory_missing"), (tmp_path, "no_checkpoints"), (full, "not_lora")):
        with pytest.raises(PackagingError) as caught:
            resolve_checkpoint("latest", where)
        assert caught.value.code is C.CHECKPOINTS_EMPTY
        assert caught.value.fields["reason"] == reason
    assert "quantize_base" in caught.value.remedy


def broken_checkpoints(run: Path) -> dict[str, str]:
    """Checkpoints that cannot be packaged, with a part of what must be said about each."""
    run.mkdir()
    (run / "checkpoint-1").mkdir()
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "adapter_model.bin").write_bytes(b"pickle")
    (run / "checkpoint-2" / "adapter_config.json").write_text("{}")
    adapter(run / "checkpoint-3")
    weights = run / "checkpoint-3" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    adapter(run / "checkpoint-4")
    (run / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"")
    adapter(run / "checkpoint-5")
    (run / "checkpoint-5" / "adapter_config.json").unlink()
    adapter(run / "checkpoint-6")
    (run / "checkpoint-6" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    adapter(run / "checkpoint-7")
    (run / "checkpoint-7" / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 5) + b"[1,2]")
    (run / "checkpoint-8").mkdir()
    (run / "checkpoint-8" / "model-00001-of-00003.safetensors").write_bytes(safetensors())
    (run / "checkpoint-8" / "model-00003-of-00003.safetensors").write_bytes(safetensors())
    (run / "checkpoint-9").mkdir()
    (run / "checkpoint-9" / "optimizer.pt").write_bytes(b"x")
    for name, header in (("checkpoint-10", b'{"__metadata__":{"format":"pt"}}'), ("checkpoint-11", safetensors(0)[8:])):
        adapter(run / name)
        (run / name / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (run / "checkpoint-12").mkdir()
    (run / "checkpoint-12" / "model.safetensors").write_bytes(safetensors(0))
    return {
        "checkpoint-1": "no weights",
        "checkpoint-2": "only pickled weights (adapter_model.bin)",
        "checkpoint-3": "its header says",
        "checkpoint-4": "cut short",
        "checkpoint-5": "adapter_model.safetensors without adapter_config.json",
        "checkpoint-6": "cut short or damaged",
        "checkpoint-7": "damaged header",
        "checkpoint-8": "shard 2 of 3 is missing",
        "checkpoint-9": "no weights",
        "checkpoint-10": "adapter_model.safetensors holds no values",
        "checkpoint-11": "adapter_model.safetensors holds no values",
        "checkpoint-12": "model.safetensors holds no values",
    }


def test_wreckage_is_listed_with_its_problem_and_never_chosen(tmp_path: Path) -> None:
    problems = broken_checkpoints(tmp_path / "run")
    listing = list_checkpoints(tmp_path / "run")
    assert {one.name for one in listing.checkpoints} == set(problems)
    for one in listing.checkpoints:
        assert one.kind is CheckpointKind.INCOMPLETE
        assert problems[one.name] in str(one.problem)
    assert (listing.latest, listing.empty_reason) == (None, EmptyReason.ALL_INCOMPLETE)
    with pytest.raises(PackagingError, match="none of which can be packaged") as caught:
        resolve_checkpoint("latest", tmp_path / "run")
    assert caught.value.code is C.CHECKPOINTS_EMPTY
    adapter(tmp_path / "run" / "checkpoint-0")
    assert resolve_checkpoint("latest", tmp_path / "run").name == "checkpoint-0"
    with pytest.raises(PackagingError, match="shard 2 of 3") as caught:
        resolve_checkpoint("checkpoint-8", tmp_path / "run")
    assert "checkpoint-0" in caught.value.remedy


def test_full_weights_checkpoints_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    for i in (1, 2):
        (tmp_path / "checkpoint-1" / f"model-{i:05d}-of-00002.safetensors").write_bytes(safetensors(i))
    one = named(list_checkpoints(tmp_path), "checkpoint-1")
    assert one.kind is CheckpointKind.FULL
    assert one.weights_bytes == len(safetensors(1)) + len(safetensors(2))


@pytest.mark.parametrize("sub", ["adapter_model", "adapter", "default"])
def test_adapters_in_a_subdirectory_are_found_and_their_paths_mean_the_checkpoint(tmp_path: Path, sub: str) -> None:
    checkpoint = tmp_path / "checkpoint-7"
    adapter(checkpoint / sub)
    assert named(list_checkpoints(tmp_path), "checkpoint-7").kind is CheckpointKind.ADAPTER
    assert resolve_checkpoint("latest", tmp_path) == checkpoint
    assert resolve_checkpoint(str(checkpoint), None) == checkpoint
    assert resolve_checkpoint(str(checkpoint / sub), None) == checkpoint
    assert resolve_checkpoint(str(checkpoint / sub / "adapter_model.safetensors"), None) == checkpoint


def test_references_mean_what_they_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "运行 42", LOSSES)
    for reference, base, name in [
        ("latest", run, "checkpoint-1000"),
        ("best", run, "checkpoint-200"),
        ("checkpoint-100", run, "checkpoint-100"),
        (str(run / "checkpoint-100"), None, "checkpoint-100"),
        (f"{run}/latest", None, "checkpoint-1000"),
        (f"{run}/best", None, "checkpoint-200"),
    ]:
        assert resolve_checkpoint(reference, base) == run / name
    adapter(tmp_path / "final")
    assert resolve_checkpoint(str(tmp_path / "final"), None) == tmp_path / "final"


def not_found(reference: str, run: Path | None) -> PackagingError:
    with pytest.raises(PackagingError) as caught:
        resolve_checkpoint(reference, run)
    assert caught.value.code is C.CHECKPOINT_NOT_FOUND
    return caught.value


def test_a_reference_that_means_nothing_says_what_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", LOSSES)
    for reference, base in (("checkpoint-1001", run), (str(run / "checkpoint-1001"), None), ("1000", run)):
        error = not_found(reference, base)
        assert "did you mean checkpoint-1000?" in error.message
        assert error.fields["known"] == ["checkpoint-100", "checkpoint-200", "checkpoint-1000"]
    assert f"{tmp_path}/gone is missing" in not_found(str(tmp_path / "gone/deep/checkpoint-1"), None).message
    assert "is a run, not a checkpoint" in not_found(str(run), None).message
    assert "/latest" in not_found(str(run), None).remedy
    assert "none is given" in not_found("latest", None).message
    assert "not a directory" in not_found(str(run / "checkpoint-100" / "trainer_state.json"), None).message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"log_history": 3}',
        '{"log_history": [3, null, {"step": "x"}, {"step": true, "eval_loss": 1}]}',
        '{"global_step": 1e400, "best_model_checkpoint": 7, "best_metric": "x"}',
        '{"stateful_callbacks": {"EarlyStoppingCallback": [1, {"args": {}}]}}',
        '{"stateful_callbacks": {"EarlyStoppingCallback": {"args": {"early_stopping_patience": "3"}}}}',
        '{"best_model_checkpoint": "", "best_global_step": null}',
        '{"best_model_checkpoint": "../../../etc/passwd"}',
        "[" * 100_000,
    ],
)
def test_a_trainer_state_of_any_content_does_no_harm(tmp_path: Path, text: str) -> None:
    adapter(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(text)
    (tmp_path / "trainer_state.json").write_bytes(b"\xff\xfe\x00")
    listing = list_checkpoints(tmp_path)
    assert (listing.latest, listing.best, listing.stopped_early_at) == ("checkpoint-1", None, None)


def test_names_without_a_number_take_their_step_from_the_state(tmp_path: Path) -> None:
    for name, step in (("checkpoint-final", 300), ("checkpoint-100", 100), ("checkpoint-odd", None)):
        adapter(tmp_path / name)
        if step is not None:
            state(tmp_path / name, step)
    listing = list_checkpoints(tmp_path)
    assert [(one.name, one.step) for one in listing.checkpoints] == [
        ("checkpoint-odd", None),
        ("checkpoint-100", 100),
        ("checkpoint-final", 300),
    ]
    assert listing.latest == "checkpoint-final"


def test_other_directories_and_files_are_not_checkpoints(tmp_path: Path) -> None:
    make_run(tmp_path, {1: {}})
    (tmp_path / "runs").mkdir()
    (tmp_path / "checkpoint-2").write_text("a file")
    (tmp_path / "tmp-checkpoint-3").mkdir()
    (tmp_path / "checkpoint-4").symlink_to(tmp_path / "nowhere")
    assert [one.name for one in list_checkpoints(tmp_path).checkpoints] == ["checkpoint-1"]


def test_a_list_can_come_from_anything_that_has_files(tmp_path: Path) -> None:
    class Bucket(LocalRunFiles):
        location = "s3://bucket/run"

    listing = list_checkpoints(Bucket(make_run(tmp_path, LOSSES)))
    assert named(listing, "checkpoint-200").path == "s3://bucket/run/checkpoint-200"
    assert choose_checkpoint(listing, "best").path == "s3://bucket/run/checkpoint-200"


def test_a_folder_above_runs_names_them_and_offers_the_newest(tmp_path: Path) -> None:
    make_run(tmp_path / "v0-20261031", {5: {}})
    make_run(tmp_path / "v1-20261101", {100: {}, 800: {}})
    (tmp_path / "logs").mkdir()
    for age, name in enumerate(
        ("v1-20261101/checkpoint-800", "v1-20261101/checkpoint-100", "v0-20261031/checkpoint-5")
    ):
        os.utime(tmp_path / name, (10**9 - age, 10**9 - age))
    listing = list_checkpoints(tmp_path)
    assert (listing.empty_reason, listing.runs) == (EmptyReason.NO_CHECKPOINTS, ("v1-20261101", "v0-20261031"))
    assert "v1-20261101, v0-20261031" in str(listing.explanation)
    with pytest.raises(PackagingError) as word:
        resolve_checkpoint("latest", tmp_path)
    assert (word.value.code, word.value.remedy) == (
        C.CHECKPOINTS_EMPTY,
        f"Give one of the runs; the newest is {tmp_path}/v1-20261101.",
    )
    with pytest.raises(PackagingError) as path:
        resolve_checkpoint(str(tmp_path), None)
    assert path.value.code is C.CHECKPOINT_NOT_FOUND
    assert f"{tmp_path}/v1-20261101/latest" in path.value.remedy


SHARDED = {
    "deepspeed": (
        "global_step100/mp_rank_00_model_states.pt",
        "python {0}/zero_to_fp32.py {0} {0} --safe_serialization",
    ),
    "fsdp": ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights {0}/pytorch_model_fsdp_0 {0}"),
}


@pytest.mark.parametrize("trainer", SHARDED)
def test_a_sharding_trainers_own_parts_are_told_with_the_command_that_joins_them(tmp_path: Path, trainer: str) -> None:
    part, command = SHARDED[trainer]
    checkpoint = tmp_path / "run" / "checkpoint-100"
    (checkpoint / part).parent.mkdir(parents=True)
    (checkpoint / part).write_bytes(b"x")
    (checkpoint / "rng_state_0.pth").write_bytes(b"x")
    (checkpoint / "config.json").write_text("{}")
    listing = list_checkpoints(tmp_path / "run")
    one = named(listing, "checkpoint-100")
    assert (one.kind, part.split("/")[0] in str(one.problem)) == (CheckpointKind.INCOMPLETE, True)
    assert one.remedy == f"Consolidate them: {command.format(checkpoint)}"
    for reference in ("latest", "checkpoint-100", str(checkpoint)):
        with pytest.raises(PackagingError) as refused:
            resolve_checkpoint(reference, tmp_path / "run")
        assert command.format(checkpoint) in refused.value.remedy
    with pytest.raises(PackagingError) as meant:
        pick(str(checkpoint), lambda place: LocalRunFiles(Path(place)))
    assert command.format(checkpoint) in meant.value.remedy
    adapter(checkpoint)  # gathered weights beside the parts are what is packaged
    assert list_checkpoints(tmp_path / "run").latest == "checkpoint-100"
