"""Every dependency is pinned with hashes, the pins are what is installed, and installing checks them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts import pins

ROOT = Path(__file__).parents[3]
PINS = {pin.name: pin for pin in pins.parse(pins.CONSTRAINTS.read_text())}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def applies(pin: pins.Pin) -> bool:
    requirement = Requirement(pin.text(hashes=False))
    return requirement.marker is None or requirement.marker.evaluate()


@pytest.mark.parametrize("extra", [pins.BASE, *EXTRAS])
def test_every_dependency_is_pinned_with_a_hash(extra: str) -> None:
    for text in PROJECT["dependencies"] if extra == pins.BASE else EXTRAS[extra]:
        wanted = Requirement(text)
        pin = PINS[pins.normal(wanted.name)]
        assert pin.hashes, f"{pin.name} has no hash"
        assert wanted.specifier.contains(pin.version), f"{text}, but {pin.version} is pinned"
        assert {extra, pins.BASE} & set(pin.needed_by), f"{pin.name} is not marked as needed by {extra}"


def test_no_pin_is_without_a_hash_or_a_user() -> None:
    assert [pin.name for pin in PINS.values() if not pin.hashes or not pin.needed_by] == []
    assert {extra for pin in PINS.values() for extra in pin.needed_by} == {pins.BASE, "cuda", *EXTRAS}


def test_the_pins_are_what_is_installed() -> None:
    different = {}
    for pin in PINS.values():
        if pin.needed_by == ("cuda",) or not applies(pin):
            continue
        try:
            found = Version(version(pin.name)).public
        except PackageNotFoundError:
            found = "missing"
        if found != pin.version:
            different[pin.name] = (pin.version, found)
    assert different == {}


def test_the_build_backend_is_pinned() -> None:
    [backend] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(backend).specifier.contains(PINS["setuptools"].version)
    assert PINS["setuptools"].needed_by == (pins.BASE,)


def test_extras_choose_a_part() -> None:
    core = {pin.name for pin in pins.chosen(list(PINS.values()), set())}
    assert {"celery", "pydantic", "redis", "rich", "typer", "setuptools"} <= core
    assert not {"torch", "fastapi", "pytest"} & core
    worker = {pin.name for pin in pins.chosen(list(PINS.values()), {"worker"})}
    assert core < worker
    assert "torch" in worker
    assert "triton" not in worker
    with pytest.raises(ValueError, match="no extra gpu"):
        pins.chosen(list(PINS.values()), {"gpu"})


def test_pip_refuses_a_file_whose_hash_is_not_listed(tmp_path: Path) -> None:
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    make_wheel(wheel)
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(pins.Pin("small", "1.0", hashes=("0" * 64,)).text() + "\n")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path), "--dry-run"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def make_wheel(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.0.dist-info/RECORD", "")


def test_the_licences_are_allowed_and_listed() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "licences.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ packages, every licence allowed\n", done.stdout)
