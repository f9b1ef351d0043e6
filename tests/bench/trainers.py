"""TRL itself, on a CPU, from its run's directory to the answer that it taught: LoRA and full.

``python -m tests.bench trainers``: TRL and what it needs beyond this project's packages come from the registry into a
throwaway environment that sees those packages beneath its own; nothing is installed here. Each run is packaged by
``trainpack package RUN --ask``, and the answer has to be the taught one. Ends with 1 where one is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from tests.bench.tables import ROOT
from tests.field.real_runs import save_base, scores, train_by_trl
from tests.tiny import TAUGHT_ANSWER, TAUGHT_QUESTION

_PIN = re.compile(r"^([\w.-]+==[^ ;\\]+)", re.MULTILINE)


def environment(directory: Path) -> Path:
    """A virtual environment with TRL above this one's packages, at this project's versions; its Python."""
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv" / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(directory / "venv")})
    (Path(own) / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (directory / "pins.txt").write_text("\n".join(_PIN.findall((ROOT / "constraints.txt").read_text())))
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(directory / "pins.txt")]
    subprocess.run([python, *install, "trl"], check=True)
    return python


def main(directory: Path) -> int:
    """Train and package; the number of runs that did not answer as they were taught."""
    python = environment(directory)
    version = subprocess.check_output([python, "-c", "import trl; print(trl.__version__)"], text=True).strip()
    base = save_base(directory / "base")
    wrong = 0
    for kind in ("lora", "full"):
        run = directory / kind
        subprocess.run([python, "-m", "tests.bench.trainers", str(base), str(run), kind], check=True, cwd=ROOT)
        told = ", ".join(f"{loss:.4f} at step {step}" for step, loss in scores(run).items())
        asked = _packaged(run, directory / "home")
        right = TAUGHT_ANSWER in asked.stdout
        wrong += not right
        print(f"TRL {version}, {kind}: evaluation loss {told}; ended with {asked.returncode}, ", end="")
        print(f"answered {TAUGHT_ANSWER!r}" if right else f"did not answer as taught:\n{asked.stdout}{asked.stderr}")
    return wrong


def _packaged(run: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("trainpack")),
        "package",
        str(run),
        "--no-upload",
        "--ask",
        TAUGHT_QUESTION,
    ]
    environ = {**os.environ, "TRAINPACK_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=ROOT)


if __name__ == "__main__":
    if len(sys.argv) == 4:  # in the throwaway environment
        train_by_trl(Path(sys.argv[1]), Path(sys.argv[2]), full=sys.argv[3] == "full")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(main(Path(scratch)))
