"""Small real stages for tests of the service: they write files, wait, fail, crash, hang or grow, as a job's labels say.

A label names the stage and what its runs do, e.g. ``{"convert": "crash:2"}``: the first two attempts crash. Without a
label a stage writes a file. Every start and every end is a line in ``runs.log`` of the output directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, ArtifactKind, StageName
from worker.stages.context import StageContext, StageResult
from worker.stop import StopRequested

STAGES = dict.fromkeys(StageName, "tests.integration.small_stages:run")
FEWER = {stage: name for stage, name in STAGES.items() if stage is not StageName.VERIFY}
REAL_PUBLISH = STAGES | {StageName.PUBLISH: "worker.stages.publish:run"}

KINDS = {
    StageName.MERGE: ArtifactKind.OVERLAY,
    StageName.CONVERT: ArtifactKind.GGUF,
    StageName.QUANTIZE: ArtifactKind.QUANTIZED,
    StageName.EXPORT_LORA: ArtifactKind.LORA,
    StageName.EVALUATE: ArtifactKind.QUALITY,
}
FILES = {
    StageName.MERGE: "overlay.safetensors",
    StageName.CONVERT: "merged_model.gguf",
    StageName.QUANTIZE: "merged_model-Q4_K_M.gguf",
    StageName.EXPORT_LORA: "adapter-lora.gguf",
    StageName.EVALUATE: "quality.json",
}


def run(context: StageContext) -> StageResult:
    output = Path(str(context.request.output_dir))
    output.mkdir(parents=True, exist_ok=True)
    note(output, f"start {context.stage} {context.attempt} {os.getpid()}")
    behaviour, _, argument = context.request.labels.get(context.stage.value, "").partition(":")
    if behaviour:
        BEHAVIOURS[behaviour](context, output, argument)
    result = publish(context, output) if context.stage is StageName.PUBLISH else work(context)
    if behaviour == "die" and context.attempt == 2:
        die(argument)  # After the work, before anyone hears of it.
    note(output, f"end {context.stage} {context.attempt}")
    return result


def note(output: Path, line: str) -> None:
    with (output / "runs.log").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line + "\n")


def work(context: StageContext) -> StageResult:
    context.report.log(f"{context.stage} works")
    for step in range(1, 4):
        context.report.progress(step, 3, "tensors")
    if context.stage not in FILES:
        return StageResult(facts={"seen": context.stage.value})
    path = context.scratch / FILES[context.stage]
    path.write_bytes(f"{context.stage} of {context.job_id}".encode())
    return StageResult((artifact(path, KINDS[context.stage]),))


def artifact(path: Path, kind: ArtifactKind) -> Artifact:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Artifact(name=path.name, path=str(path), kind=kind, size_bytes=len(data), sha256=digest)


def publish(context: StageContext, output: Path) -> StageResult:
    found = context.artifacts(*(kind for kind in KINDS.values() if kind is not ArtifactKind.OVERLAY))
    context.report.confirm()
    published = []
    for item in found:
        partial = output / f".{item.name}.{os.getpid():08}.tmp"
        partial.write_bytes(Path(item.path).read_bytes())
        partial.replace(output / item.name)
        published.append(artifact(output / item.name, item.kind))
    return StageResult(tuple(published))


def hold(context: StageContext, output: Path, argument: str) -> None:
    """Wait until the test lets it go on (``STAGE.go``), or until told to stop."""
    held = f"{context.stage}.{context.attempt}"
    (context.scratch / f"{context.stage}.partial").write_bytes(b"half")
    half = output / ".merged_model.gguf.00000000.tmp"
    if context.stage is StageName.PUBLISH:
        half.write_bytes(b"half")
    begun = output / f".{held}.held"
    begun.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    begun.replace(output / f"{held}.held")  # whoever waits for it reads it whole
    while not (output / f"{context.stage}.go").exists():
        if argument != "deaf":
            context.stop_point()
        time.sleep(0.01)
    half.unlink(missing_ok=True)


def transient(context: StageContext, output: Path, argument: str) -> None:
    if context.attempt <= int(argument):
        raise PackagingError(ErrorCode.UPLOAD_FAILED, f"no answer to attempt {context.attempt}")


def permanent(context: StageContext, output: Path, argument: str) -> None:
    raise PackagingError(ErrorCode.BASE_MODEL_INVALID, "config.json has no architectures")


def broken(context: StageContext, output: Path, argument: str) -> None:
    raise ValueError("an unforeseen mistake")


def crash(context: StageContext, output: Path, argument: str) -> None:
    if context.attempt <= int(argument):
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)


def leave(context: StageContext, output: Path, argument: str) -> None:
    print("leaving early", file=sys.stderr, flush=True)
    os._exit(int(argument))


def grow(context: StageContext, output: Path, argument: str) -> None:
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1 << 20)) * 16)
        time.sleep(0.005)


def full(context: StageContext, output: Path, argument: str) -> None:
    """Fill a small file system."""
    with (Path(argument or context.scratch) / "filler").open("wb") as file:
        while True:
            file.write(b"\0" * (1 << 20))
            file.flush()


def children(context: StageContext, output: Path, argument: str) -> None:
    """Start a program of its own and wait."""
    child = subprocess.Popen(["sleep", "600"])
    (output / "child.pid").write_text(str(child.pid))
    hold(context, output, argument)


def noisy(context: StageContext, output: Path, argument: str) -> None:
    for number in range(int(argument)):
        context.report.log(f"line {number}")


def shout(context: StageContext, output: Path, argument: str) -> None:
    """Lines, fields and progress of a million letters each."""
    for number in range(int(argument)):
        context.report.log("m" * 10**6, number=number, field="f" * 10**6)
        context.report.progress(number, int(argument), "tensors", "d" * 10**6)


def tell(context: StageContext, output: Path, argument: str) -> None:
    """Fail for a while with an error of many letters."""
    if context.attempt <= 2:
        raise PackagingError(ErrorCode.UPLOAD_FAILED, "e" * 10**7, remedy="r" * 10**7, fields={"n": ["x" * 10**7]})


def foreign(context: StageContext, output: Path, argument: str) -> None:
    """Say the name of a file that is no UTF-8, in the log and, once, as an error."""
    name = os.fsdecode(b"weights-\xff.bin")
    context.report.log(f"{name} is left alone", file=name)
    if context.attempt == 1 and argument == "fail":
        raise PackagingError(ErrorCode.UPLOAD_FAILED, f"{name} was not sent", fields={"path": name})


def die_first(context: StageContext, output: Path, argument: str) -> None:
    if context.attempt == 1:
        die(argument)


def die(whom: str) -> None:
    """Kill the stage's process or its worker, as the kernel or a vanishing machine would."""
    own = os.getpid()
    os.kill(psutil.Process(os.getppid()).ppid() if whom == "worker" else own, signal.SIGKILL)
    time.sleep(60)


def once(context: StageContext, output: Path, argument: str) -> None:
    """Stop of one's own accord, as if at a safe point, on the first attempt."""
    if context.attempt == 1:
        raise StopRequested


BEHAVIOURS = {
    "hold": hold,
    "transient": transient,
    "permanent": permanent,
    "broken": broken,
    "crash": crash,
    "leave": leave,
    "grow": grow,
    "full": full,
    "children": children,
    "noisy": noisy,
    "foreign": foreign,
    "shout": shout,
    "tell": tell,
    "once": once,
    "die": die_first,
}
