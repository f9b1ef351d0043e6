"""Write ``constraints.txt`` anew: every package of every extra, for every platform, with the hashes of all its files.

``python scripts/lock.py [--upgrade] [--wheels DIR]``. Versions stay as they are unless ``--upgrade`` is given or
pyproject.toml asks for others. ``--wheels`` adds the hashes of local wheels of pinned packages (a build of torch from
elsewhere); hashes of an unchanged pin are kept, so that needs saying only once. Uses uv, in a directory of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from dataclasses import replace
from pathlib import Path

from pins import BASE, CONSTRAINTS, NEEDED_BY, Pin, normal, parse

PYPROJECT = CONSTRAINTS.with_name("pyproject.toml")
UV = "uv==0.13.9"
CUDA = re.compile(r"nvidia-|cuda-|triton$")
"""What only torch for CUDA needs; whether it does depends on the build, which no marker can tell."""
HEADER = """\
# Every package of every extra, pinned, with the sha256 of every file that the index has for it. `make lock` writes this
# file; `make install` checks it; scripts/pins.py prints the part that some extras need.
"""


def install_uv(directory: Path) -> Path:
    """A uv of its own, so that it is no part of the environment it locks."""
    venv.create(directory, with_pip=True)
    subprocess.run([directory / "bin" / "python", "-m", "pip", "install", "--quiet", UV], check=True)
    return directory / "bin" / "uv"


def resolve(uv: Path, extras: list[str], known: Path, *, hashes: bool) -> list[Pin]:
    """Pins of some extras on all platforms; ``known`` holds versions to keep to."""
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-annotate"]
    command += ["--no-header", "--no-emit-package", "pip", "--constraint", known, *(["--generate-hashes"] * hashes)]
    command += [word for extra in extras for word in ("--extra", extra)]
    done = subprocess.run(
        [*command, PYPROJECT, "-"], input="setuptools\n", text=True, stdout=subprocess.PIPE, check=True
    )
    return [pin for pin in parse(done.stdout) if "emscripten" not in pin.marker or "!=" in pin.marker]


def needed_by(uv: Path, extras: list[str], known: Path) -> dict[str, list[str]]:
    """Which extras need each package."""
    found: dict[str, list[str]] = {}
    for extra in [BASE, *extras]:
        for pin in resolve(uv, [extra] if extra != BASE else [], known, hashes=False):
            found.setdefault(pin.name, []).append("cuda" if CUDA.match(pin.name) else extra)
    return found


def wheel_hashes(directories: list[Path]) -> dict[tuple[str, str], set[str]]:
    """Digests of local wheels by name and public version."""
    found: dict[tuple[str, str], set[str]] = {}
    for wheel in (path for directory in directories for path in directory.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.setdefault((normal(name), version.partition("+")[0]), set()).add(digest)
    return found


def lock(*, upgrade: bool, wheels: list[Path]) -> str:
    """The new text of the file."""
    before = parse(CONSTRAINTS.read_text())
    extras = sorted(tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"])
    more = wheel_hashes(wheels)
    for pin in before:
        more.setdefault((pin.name, pin.version), set()).update(pin.hashes)
    with tempfile.TemporaryDirectory() as directory:
        uv, known = install_uv(Path(directory) / "uv"), Path(directory) / "known.txt"
        keep = [] if upgrade else before
        known.write_text("".join(f"{pin.name}=={pin.version.partition('+')[0]}\n" for pin in keep))
        pins = resolve(uv, extras, known, hashes=True)
        known.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in pins))
        users = needed_by(uv, extras, known)
    lines = [HEADER.rstrip()]
    for pin in pins:
        digests = tuple(sorted({*pin.hashes, *more.get((pin.name, pin.version), ())}))
        lines.append(NEEDED_BY + ", ".join([BASE] if BASE in users[pin.name] else sorted(set(users[pin.name]))))
        lines.append(replace(pin, hashes=digests).text())
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    parser.add_argument("--wheels", type=Path, action="append", default=[], help="directory of local wheels")
    arguments = parser.parse_args()
    try:
        text = lock(upgrade=arguments.upgrade, wheels=arguments.wheels)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{Path(error.cmd[0]).name} failed; nothing was written")
    CONSTRAINTS.write_text(text)
    print(f"{CONSTRAINTS.name}: {len(parse(text))} packages, {text.count('--hash')} hashes")


if __name__ == "__main__":
    main()
