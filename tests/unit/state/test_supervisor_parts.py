"""Parts of the supervisor that need no process: channel, rates, deaths, errors, scratch, upstream, drain."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from api_client import (
    Artifact,
    ArtifactKind,
    ErrorCode,
    Job,
    JobState,
    PackagingError,
    PackagingRequest,
    Stage,
    StageName,
    StageState,
)
from api_client.contract.rules import resolve_request
from config.roots import Roots
from config.settings import load_settings
from tests.waiting import eventually
from worker.service.supervisor import heart, watch
from worker.service.supervisor.channel import Channel
from worker.service.supervisor.child import as_packaging_error
from worker.service.supervisor.drain import Drain
from worker.service.supervisor.limits import describe_death
from worker.service.supervisor.relay import RateMeter
from worker.service.supervisor.scratch import (
    end_predecessor,
    make_scratch,
    remove_scratch,
    scratch_path,
    scratch_roots,
    sweep_output,
)
from worker.service.supervisor.upstream import check_upstream


def test_a_channel_keeps_messages_whole_and_reading_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    reader = Channel(ours)
    assert reader.receive() == []
    theirs.sendall(b'{"type": "log", "mess')
    assert reader.receive() == []
    theirs.sendall(b'age": "\xc3\xa9"}\n{"type": "stop"}\n{"ty')
    assert reader.receive() == [{"type": "log", "message": "é"}, {"type": "stop"}]
    assert not reader.closed
    theirs.close()
    assert reader.receive() == []
    assert reader.closed
    reader.send("stop")  # Nobody listens any more; that is no error.
    reader.close()


def test_the_rate_is_of_a_sliding_window_and_starts_over() -> None:
    meter = RateMeter()
    assert meter.rate(0, 100) is None
    assert meter.rate(1, 150) == 50
    assert meter.rate(2, 150) == 25
    assert meter.rate(30, 1550) == 50
    assert meter.rate(31, 0) is None
    assert meter.rate(33, 20) == 10


@pytest.mark.parametrize(
    ("code", "oom", "text"),
    [
        (None, False, "lost"),
        (0, False, "ended with exit code 0 and no result"),
        (3, True, "ended with exit code 3 and no result"),
        (-11, True, "killed by SIGSEGV"),
        (-9, False, "killed by SIGKILL"),
        (-9, True, "killed by SIGKILL (out of memory)"),
        (-99, False, "killed by signal 99"),
    ],
)
def test_deaths_in_words(code: int | None, oom: bool, text: str) -> None:
    assert describe_death(code, oom) == text


class OutOfMemoryError(RuntimeError):
    pass


OutOfMemoryError.__module__ = "torch"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PackagingError(ErrorCode.UPLOAD_FAILED, "x"), ErrorCode.UPLOAD_FAILED),
        (OSError(errno.ENOSPC, "full", "/out/x"), ErrorCode.DISK_SPACE_INSUFFICIENT),
        (OSError(errno.EDQUOT, "quota"), ErrorCode.DISK_SPACE_INSUFFICIENT),
        (OSError(errno.EIO, "io"), ErrorCode.INTERNAL_ERROR),
        (MemoryError(), ErrorCode.OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA"), ErrorCode.CUDA_OUT_OF_MEMORY),
        (ModuleNotFoundError("no", name="xllamacpp"), ErrorCode.DEPENDENCY_MISSING),
        (ModuleNotFoundError("no", name="worker.gone"), ErrorCode.INTERNAL_ERROR),
        (KeyError("x"), ErrorCode.INTERNAL_ERROR),
        (SystemExit(1), ErrorCode.INTERNAL_ERROR),
    ],
)
def test_foreign_errors_get_a_code_by_type(error: BaseException, code: ErrorCode) -> None:
    assert as_packaging_error(error).code is code


def request_of(output: str) -> PackagingRequest:
    return PackagingRequest(base_model="/b", checkpoint="/c", output_dir=output)


def test_where_scratch_lies(tmp_path: Path) -> None:
    settings = load_settings({}, home=tmp_path)
    assert scratch_path(settings, "J", request_of("/out")) == Path("/out/.trainpack-J")
    assert scratch_path(settings, "J", request_of("s3://b/p")) == tmp_path / "scratch/J"
    chosen = load_settings({}, home=tmp_path, scratch_dir=tmp_path / "fast")
    assert scratch_path(chosen, "J", request_of("/out")) == tmp_path / "fast/J"


def test_the_operators_own_scratch_is_not_bound_by_the_roots_of_jobs(tmp_path: Path) -> None:
    bound = load_settings({}, home=tmp_path, allowed_roots=(Path("/data"),))
    assert scratch_roots(bound, request_of("/out")) == Roots.only(Path("/data"))
    assert scratch_roots(bound, request_of("s3://b/p")) == Roots.anywhere()
    chosen = load_settings({}, home=tmp_path, allowed_roots=(Path("/data"),), scratch_dir=tmp_path)
    assert scratch_roots(chosen, request_of("/out")) == Roots.anywhere()


def test_temporaries_of_an_ended_publish_go_and_nobody_elses(tmp_path: Path) -> None:
    names = [".a.gguf.00ff00ff.tmp", ".other.gguf.00ff00ff.tmp", "a.gguf", ".a.gguf.tmp", ".a.gguf.held0000.tmp"]
    for name in names:
        (tmp_path / name).touch()
    with (tmp_path / ".a.gguf.held0000.tmp").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep_output(str(tmp_path), ["a.gguf"])
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    sweep_output("s3://bucket/prefix", ["a.gguf"])
    sweep_output(None, ["a.gguf"])


def test_directories_made_for_scratch_go_with_it_unless_used(tmp_path: Path) -> None:
    scratch = tmp_path / "new" / "out" / ".trainpack-J"
    make_scratch(scratch, Roots.anywhere())
    (scratch / "deep").mkdir()
    (scratch / "deep" / "file").touch()
    remove_scratch(scratch)
    assert list(tmp_path.iterdir()) == []
    make_scratch(scratch, Roots.anywhere())
    (scratch.parent / "model.gguf").touch()
    remove_scratch(scratch)
    assert [path.name for path in scratch.parent.iterdir()] == ["model.gguf"]
    own = tmp_path / "mine"
    own.mkdir()
    make_scratch(own / ".trainpack-J", Roots.anywhere())
    remove_scratch(own / ".trainpack-J")
    assert own.is_dir()


def test_scratch_is_made_only_where_allowed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    make_scratch(tmp_path / "in" / "job", Roots.only(tmp_path / "in"))
    with pytest.raises(PackagingError) as caught:
        make_scratch(tmp_path / "in" / ".." / "job", Roots.only(tmp_path / "in"))
    assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
    (tmp_path / "file").touch()
    with pytest.raises(PackagingError) as caught:
        make_scratch(tmp_path / "file" / "job", Roots.anywhere())
    assert caught.value.code is ErrorCode.OUTPUT_DIR_NOT_WRITABLE


def test_a_process_that_does_not_hold_the_lock_is_spared(tmp_path: Path) -> None:
    make_scratch(tmp_path / "s", Roots.anywhere())
    for text in ("", "1", "999999", "not a number"):
        (tmp_path / "s" / ".lock").write_text(text)
        assert end_predecessor(tmp_path / "s") is None


def test_draining_grows_impatient() -> None:
    hasty = Drain(bound_s=0.05)
    hasty.request()
    eventually(lambda: hasty.impatient, "the bound is over")
    patient = Drain(bound_s=600)
    assert not patient.requested
    assert not patient.impatient
    patient.request()
    assert patient.requested
    assert not patient.impatient
    patient.request()
    assert patient.impatient


def test_a_cancelled_stage_has_ended_within_five_seconds() -> None:
    """Until the next renewal says so, until the loop beside the stage looks, and the time the stage is given."""
    settings = load_settings({})
    seen_s = min(settings.heartbeat_s, heart.LONGEST_PAUSE_S) + watch.POLL_S
    assert seen_s + settings.cancel_grace_s + watch.POLL_S < 5


def file_artifact(path: Path, kind: ArtifactKind, data: bytes) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Artifact(name=path.name, path=str(path), kind=kind, size_bytes=len(data), sha256=digest)


@pytest.fixture
def half_done(tmp_path: Path) -> Job:
    """A job whose prepare, merge and convert have succeeded, with scratch beside its output directory."""
    scratch, output = tmp_path / "scratch", tmp_path / "out"
    request, options = resolve_request(request_of(str(output)))
    names = [StageName(name) for name in ("prepare", "merge", "convert", "quantize", "verify", "evaluate", "publish")]
    made = {
        StageName.MERGE: (file_artifact(scratch / "overlay", ArtifactKind.OVERLAY, b"o"),),
        StageName.CONVERT: (file_artifact(scratch / "merged_model.gguf", ArtifactKind.GGUF, b"gguf"),),
    }
    done = names[:3]
    stages = tuple(
        Stage(
            name=name,
            state=StageState.SUCCEEDED if name in done else StageState.PENDING,
            artifacts=made.get(name, ()),
            facts={"of": name.value} if name in done else {},
        )
        for name in names
    )
    return Job(
        id="J",
        state=JobState.RUNNING,
        request=request,
        options=options,
        plan=tuple(names),
        stages=stages,
        created_at=datetime.now(UTC),
    )


def reset(job: Job, stage: str, *, moved: bool = False, digests: bool = False) -> list[str]:
    return [name.value for name in check_upstream(job, StageName(stage), moved=moved, digests=digests).reset]


def test_everything_there(half_done: Job) -> None:
    upstream = check_upstream(half_done, StageName.QUANTIZE, moved=False, digests=True)
    assert upstream.reset == ()
    assert list(upstream.done) == [StageName.PREPARE, StageName.MERGE, StageName.CONVERT]
    assert upstream.done[StageName.PREPARE].facts == {"of": "prepare"}
    assert [a.name for a in upstream.done[StageName.CONVERT].artifacts] == ["merged_model.gguf"]


def test_only_what_is_still_needed_is_missed(half_done: Job, tmp_path: Path) -> None:
    (tmp_path / "scratch/overlay").unlink()
    assert reset(half_done, "quantize") == ["merge"], "quantize and evaluate read it"
    without = tuple(name for name in half_done.plan if name is not StageName.EVALUATE)
    half_done = half_done.model_copy(
        update={"plan": without, "stages": tuple(stage for stage in half_done.stages if stage.name in without)}
    )
    assert reset(half_done, "verify") == ["merge"], "verify may ask base and overlay"
    assert reset(half_done, "publish") == []
    assert reset(half_done, "convert") == ["merge"]
    (tmp_path / "scratch/merged_model.gguf").unlink()
    assert reset(half_done, "quantize") == ["merge", "convert"]


def test_another_size_is_seen_always_other_bytes_when_digests_are_read(half_done: Job, tmp_path: Path) -> None:
    (tmp_path / "scratch/merged_model.gguf").write_bytes(b"GGUF")
    assert reset(half_done, "quantize") == []
    assert reset(half_done, "quantize", digests=True) == ["convert"]
    (tmp_path / "scratch/merged_model.gguf").write_bytes(b"longer")
    assert reset(half_done, "quantize") == ["convert"]


def test_a_published_copy_stands_in_but_not_a_stranger_of_the_same_name(half_done: Job, tmp_path: Path) -> None:
    (tmp_path / "scratch/merged_model.gguf").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/merged_model.gguf").write_bytes(b"gguf")
    upstream = check_upstream(half_done, StageName.QUANTIZE, moved=False, digests=False)
    assert [a.path for a in upstream.done[StageName.CONVERT].artifacts] == [str(tmp_path / "out/merged_model.gguf")]
    (tmp_path / "out/merged_model.gguf").write_bytes(b"GGUF")
    assert reset(half_done, "quantize") == ["convert"]


def test_on_another_host_prepare_runs_again(half_done: Job) -> None:
    assert reset(half_done, "quantize", moved=True) == ["prepare"]
    assert reset(half_done, "prepare", moved=True) == []
