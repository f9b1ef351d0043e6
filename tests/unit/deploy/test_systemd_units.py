"""The units: systemd's own checks where it is installed, and that stopping leaves time to drain."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy.deploy_files import CONSOLE_NAMES, DEPLOY, DRAIN_S, SETTING_NAMES, STOP_MARGIN_S, program

HERE = DEPLOY / "systemd"
UNITS = ("trainpack-worker@.service", "trainpack-console.service")
MOST_EXPOSED = 20
"""Tenths of systemd's exposure level."""


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read(HERE / name)
    return parser


def test_systemd_verifies_the_units(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    for name in (*UNITS, "trainpack.slice"):
        # the program of the unit is not installed here, another stands in for it
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (HERE / name).read_text(), flags=re.M)
        (tmp_path / name).write_text(text)
    command = [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_little_exposed() -> None:
    command = [program("systemd-analyze"), "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSED}"]
    for name in UNITS:
        done = subprocess.run([*command, str(HERE / name)], capture_output=True, text=True, check=False)
        if "unrecognized option" in done.stderr:
            pytest.skip("systemd-analyze is too old to look at files")
        assert done.returncode == 0, done.stdout[-300:]


def test_users_and_directories_are_made(tmp_path: Path) -> None:
    sysusers, tmpfiles = program("systemd-sysusers"), program("systemd-tmpfiles")
    for kind in ("sysusers", "tmpfiles"):
        target = tmp_path / f"usr/lib/{kind}.d/trainpack.conf"
        target.parent.mkdir(parents=True)
        shutil.copy(HERE / f"trainpack.{kind}.conf", target)
    (tmp_path / "etc").mkdir()
    made = subprocess.run([sysusers, f"--root={tmp_path}"], capture_output=True, text=True, check=False)
    if made.returncode != 0 and "not permitted" in made.stderr:
        pytest.skip("only root makes users")
    assert made.returncode == 0, made.stderr
    subprocess.run([tmpfiles, f"--root={tmp_path}", "--create", "trainpack.conf"], check=True, capture_output=True)
    assert {"trainpack", "trainpack-console"} <= {
        line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()
    }
    assert (tmp_path / "var/lib/trainpack/scratch").is_dir()
    assert (tmp_path / "var/cache/trainpack/kernels").is_dir()


def test_a_worker_has_time_to_drain_and_gets_the_signal_first() -> None:
    service = unit(UNITS[0])["Service"]
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= DRAIN_S + STOP_MARGIN_S
    assert f"TRAINPACK_DRAIN_S={DRAIN_S:g}" in (HERE / "worker.env.example").read_text()


def test_variables_are_settings() -> None:
    for name in UNITS:
        text = (HERE / name).read_text()
        assert set(re.findall(r"Environment=(TRAINPACK_[A-Z0-9_]+)=", text)) <= SETTING_NAMES | CONSOLE_NAMES
    for path in HERE.glob("*.env.example"):
        found = set(re.findall(r"^#?(TRAINPACK_[A-Z0-9_]+)=", path.read_text(), flags=re.M))
        assert found
        assert found <= SETTING_NAMES | (CONSOLE_NAMES if path.name.startswith("console") else set())


def test_no_unit_writes_outside_its_directories() -> None:
    worker, console = unit(UNITS[0])["Service"], unit(UNITS[1])["Service"]
    assert worker["ProtectSystem"] == console["ProtectSystem"] == "strict"
    assert set(worker["ReadWritePaths"].split()) == {"/var/lib/trainpack", "/var/cache/trainpack"}
    assert "ReadWritePaths" not in console
