"""The Dockerfile, as far as it can be judged without an engine: lint, sources, commands, users, healthchecks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from config.flower import create_onlooker
from config.settings import load_settings
from tests.unit.deploy.deploy_files import CONSOLE_NAMES, DEPLOY, ROOT, SETTING_NAMES, program

FILE = DEPLOY / "Dockerfile"
TARGETS = ("worker-cuda", "worker-cpu", "console", "flower")


@cache
def instructions() -> tuple[tuple[str, str, str], ...]:
    """``(stage, instruction, rest)``, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.M).replace("\\\n", " ")
    stage, found = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split()[-1]
        found.append((stage, word, rest.strip()))
    return tuple(found)


@cache
def parents() -> dict[str, str]:
    return {stage: rest.split()[0] for stage, word, rest in instructions() if word == "FROM"}


def last(target: str, word: str) -> str:
    """The instruction in force in a target: its own, else that of the stage it builds on."""
    own = [rest for stage, each, rest in instructions() if stage == target and each == word]
    return own[-1] if own else last(parents()[target], word)


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([program("hadolint"), str(FILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_scripts_are_shell() -> None:
    for script in [*(DEPLOY / "image").glob("*.sh"), *(DEPLOY / "compose").glob("*.sh")]:
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert script.stat().st_mode & 0o111, script


def test_everything_copied_is_there_and_let_through() -> None:
    let_through = [
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    copied = [rest.split()[:-1] for _, word, rest in instructions() if word == "COPY" and "--from" not in rest]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(name + "/") for name in let_through), source


def test_stages_copied_from_exist() -> None:
    for stage in re.findall(r"--from=(\S+)", FILE.read_text()):
        assert stage in parents()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_fixed_user_with_a_real_healthcheck(target: str) -> None:
    assert last(target, "USER") == "10001:10001"
    assert last(target, "STOPSIGNAL") == "SIGTERM"
    entry = json.loads(last(target, "ENTRYPOINT"))
    assert entry[:3] == ["/usr/bin/tini", "--", "with-secrets"]
    assert "/tmp" in json.loads(last(target, "VOLUME"))
    assert isinstance(json.loads(last(target, "HEALTHCHECK").split("CMD", 1)[1]), list)


def test_volumes_are_every_place_a_worker_writes_to() -> None:
    volumes = set(json.loads(last("worker", "VOLUME")))
    environment = " ".join(rest for _, word, rest in instructions() if word == "ENV")
    for name in ("HOME", "TRAINPACK_HOME", "TRAINPACK_SCRATCH_DIR", "TMPDIR"):
        found = re.search(rf"\b{name}=(\S+)", environment)
        assert found
        assert found[1] in volumes, name


def test_final_stages_hold_no_build_tools() -> None:
    for target in TARGETS:
        stage = target
        while stage in parents():
            runs = [rest for at, word, rest in instructions() if at == stage and word == "RUN"]
            added = {name for run in runs for name in re.findall(r"--no-install-recommends ([^&]+?) &&", run)}
            assert added <= {"libgomp1"}, (target, added)
            assert not any(re.search(r"\bpip\b|gcc|curl", run) for run in runs), (target, runs)
            stage = parents()[stage]


def test_bases_take_a_digest() -> None:
    froms = {name for name in parents().values() if name not in parents()}
    assert froms == {"${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"}


def test_settings_and_no_secret_in_it() -> None:
    named = set(re.findall(r"\b(TRAINPACK_[A-Z0-9_]+)=", FILE.read_text()))
    assert named <= SETTING_NAMES | CONSOLE_NAMES
    assert not [name for name in named if re.search("SECRET|TOKENS$|ACCESS|PASSWORD|SESSION|REDIS_URL", name)]


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "worker.health", "--help"],
        ["-m", "worker.kernels.precompile", "--help"],
        ["-m", "api_client.cli", "worker", "--help"],
        ["-m", "api_client.cli", "console", "--help"],
    ],
    ids=lambda command: command[1] + command[-2],
)
def test_commands_parse(command: list[str]) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, timeout=120)


def test_commands_are_those_of_the_image() -> None:
    assert [json.loads(last(name, "CMD")) for name in ("worker-cpu", "worker-cuda", "console")] == [
        ["worker"],
        ["worker"],
        ["console"],
    ]


def test_flower_watches_the_workers_broker() -> None:
    entry = json.loads(last("flower", "ENTRYPOINT"))
    assert entry[-3:] == ["-A", "config.flower", "flower"]
    conf = create_onlooker(load_settings(redis_url="redis://127.0.0.1:1/3")).conf
    assert conf.broker_url == "redis://127.0.0.1:1/3"
    assert conf.broker_transport_options["global_keyprefix"] == "trainpack:broker:"
    assert {queue.name for queue in conf.task_queues} == {"packaging.heavy", "packaging.io"}
    assert not conf.broker_use_ssl


def test_flower_trusts_the_authority_that_the_address_names() -> None:
    url = "rediss://trainpack:pw@redis:6380/0?ssl_ca_certs=/run/secrets/redis_ca&ssl_check_hostname=false"
    conf = create_onlooker(load_settings(redis_url=url)).conf
    transport = conf.broker_transport_options
    broker = pytest.importorskip("flower.utils.broker").Broker(
        conf.broker_url, broker_options=transport, broker_use_ssl=conf.broker_use_ssl
    )
    options = broker.redis.connection_pool.connection_kwargs
    assert broker.redis.connection_pool.connection_class is SSLConnection
    assert (options["ssl_ca_certs"], options["ssl_check_hostname"]) == ("/run/secrets/redis_ca", False)


def test_secrets_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "redis_url"
    secret.write_text('redis://:it\'s a "secret"@redis/0')
    script = str(DEPLOY / "image" / "with-secrets.sh")
    environment = {"PATH": "/usr/bin:/bin", "FROM_FILE_TRAINPACK_REDIS_URL": str(secret)}
    done = subprocess.run([script, "env"], env=environment, capture_output=True, text=True, check=True)
    assert f"TRAINPACK_REDIS_URL={secret.read_text()}\n" in done.stdout
    assert "FROM_FILE" not in done.stdout
    secret.unlink()
    assert subprocess.run([script, "env"], env=environment, capture_output=True, check=False).returncode != 0
