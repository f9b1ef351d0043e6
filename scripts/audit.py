"""Known vulnerabilities of the pinned versions, through pip-audit.

``python scripts/audit.py [--service pypi|osv]``. Exit code 0: everything was looked up and nothing is known; 1: a
vulnerability; 2: not everything could be looked up. pip-audit itself ends well when its service knows no package at
all, as a package index without vulnerability data does; that is no clean bill, so it is counted here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pins import CONSTRAINTS, parse


def look_up(service: str) -> dict[str, Any] | None:
    """pip-audit's answer for every pin; ``None`` where the service does not answer."""
    with tempfile.TemporaryDirectory() as directory:
        pins = Path(directory) / "pins.txt"
        pins.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in parse(CONSTRAINTS.read_text())))
        command = [str(Path(sys.executable).with_name("pip-audit")), "--requirement", str(pins), "--no-deps"]
        command += [
            "--disable-pip",
            "--format=json",
            "--progress-spinner=off",
            "--timeout=10",
            f"--vulnerability-service={service}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"pip-audit: {reason}", file=sys.stderr)
        return None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi")
    service = parser.parse_args().service
    answer = look_up(service)
    if answer is None:
        print(f"NOT AUDITED: the vulnerability service {service!r} cannot be reached from here.")
        sys.exit(2)
    entries = answer["dependencies"]
    unknown = [entry["name"] for entry in entries if "skip_reason" in entry]
    bad = [(entry, found) for entry in entries for found in entry.get("vulns", ())]
    for entry, found in bad:
        fixed = ", ".join(found["fix_versions"]) or "none"
        print(f"{entry['name']} {entry['version']}: {found['id']}, fixed in {fixed}")
    print(f"{len(entries) - len(unknown)} of {len(entries)} packages looked up, {len(bad)} known vulnerabilities")
    if unknown:
        print(f"NOT AUDITED: {service!r} has no data on {len(unknown)} packages, {', '.join(unknown[:5])}, ...")
    sys.exit(1 if bad else 2 if unknown else 0)


if __name__ == "__main__":
    main()
