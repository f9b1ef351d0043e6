"""Read ``constraints.txt`` and print the part of it that some extras need, for ``pip install -r``.

``python scripts/pins.py --extras worker,embedded [--package torch] [--hashes no]``. Standard library only: it runs
before anything is installed. The extra ``cuda`` stands for what PyPI's Linux build of torch wants beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
NEEDED_BY = "# for: "
BASE = "base"
"""Stands for what trainpack needs without any extra."""


@dataclass(frozen=True)
class Pin:
    """One package at one version.

    Attributes:
        needed_by: Extras that need it; ``base`` alone where the core does.
        marker: Environment marker, empty for none.
        hashes: sha256 digests of its files.
    """

    name: str
    version: str
    marker: str = ""
    hashes: tuple[str, ...] = ()
    needed_by: tuple[str, ...] = ()

    def text(self, *, hashes: bool = True) -> str:
        """The pin as pip reads it, a line for each hash."""
        first = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n    ".join([first, *(f"--hash=sha256:{digest}" for digest in self.hashes if hashes)])


def normal(name: str) -> str:
    """A package name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(text: str) -> list[Pin]:
    """Pins of a requirements file with one package to a logical line."""
    pins: list[Pin] = []
    needed_by: tuple[str, ...] = ()
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(NEEDED_BY):
            needed_by = tuple(line.removeprefix(NEEDED_BY).split(", "))
        elif found := re.match(r"([\w.-]+)==([^\s;]+)\s*(?:;\s*(.*?))?\s*(?=--hash|$)", line):
            digests = tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)))
            pins.append(Pin(normal(found[1]), found[2], (found[3] or "").strip(), digests, needed_by))
            needed_by = ()
    return pins


def chosen(pins: list[Pin], extras: set[str]) -> list[Pin]:
    """Those that the core or one of the extras needs.

    Raises:
        ValueError: an extra that no pin names.
    """
    known = {extra for pin in pins for extra in pin.needed_by}
    if unknown := sorted(extras - known):
        raise ValueError(f"no extra {', '.join(unknown)}; there are {', '.join(sorted(known - {BASE}))}")
    return [pin for pin in pins if (extras | {BASE}) & set(pin.needed_by)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", default="", help="comma-separated; none: the core alone")
    parser.add_argument("--package", help="only this one")
    parser.add_argument("--hashes", choices=["yes", "no"], default="yes")
    arguments = parser.parse_args()
    try:
        pins = chosen(parse(CONSTRAINTS.read_text()), set(filter(None, arguments.extras.split(","))))
    except ValueError as error:
        sys.exit(str(error))
    for pin in pins:
        if arguments.package in (None, pin.name):
            print(pin.text(hashes=arguments.hashes == "yes"))


if __name__ == "__main__":
    main()
