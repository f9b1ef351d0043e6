"""Newer trainpacks, copies of the packages: one of the next schema version, one with more fields that have defaults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.harness import ROOT, Installation

CHANGES = {
    "api_client/contract/job.py": [("SCHEMA_VERSION = 1\n", "SCHEMA_VERSION = 2\n")],
    "api_client/contract/stages.py": [
        (
            "    PUBLISH = (\n",
            '    SIGN = ("sign", StageSpec(EventKind.SIGN, "Sign", "签名", lambda *_: True, reads=_GGUFS))\n'
            "    PUBLISH = (\n",
        )
    ],
    "api_client/contract/event_kinds.py": [
        ('    PUBLISH = "Publish"\n', '    PUBLISH = "Publish"\n    SIGN = "Sign"\n')
    ],
    "api_client/contract/request.py": [
        ("    priority: Count = ", '    signer: str = "nobody"\n    priority: Count = '),
    ],
}
"""File, and what is put in place of what."""

NEW_CODE = {"api_client/contract/error_codes.py": [('        "upload_failed",\n', '        "upload_swallowed",\n')]}
"""An error code that only this version knows, of the class transient."""

NEW_FIELDS = {
    "api_client/contract/request.py": CHANGES["api_client/contract/request.py"],
    "api_client/contract/rules.py": [
        (
            "    quant_types: tuple[QuantTypeField, ...]\n",
            "    quant_types: tuple[QuantTypeField, ...]\n    sign: bool = False\n",
        )
    ],
    "api_client/contract/templates.py": [
        ("    locked: bool = True\n", "    locked: bool = True\n    sign: bool = False\n")
    ],
}
"""What needs no new schema version."""

_SUBMIT = """
import sys
from api_client import PackagingClient, PackagingRequest
url, prefix, request = sys.argv[1:]
with PackagingClient(url, key_prefix=prefix) as client:
    print(client.submit(PackagingRequest.from_json(request)).id)
"""


def make_newer(directory: Path, all_changes: dict[str, list[tuple[str, str]]]) -> Path:
    """Copy the packages and change them; the directory to start its programs in."""
    for package in ("api_client", "config", "worker"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in all_changes.items():
        file = directory / name
        text = file.read_text()
        for old, new in changes:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        file.write_text(text)
    return directory


def submit_newer(service: Installation, source: Path, name: str, **values: str) -> str:
    """Submit a job as a newer producer does; its id."""
    request = json.loads(service.request(name).model_dump_json(exclude_unset=True)) | values
    command = [sys.executable, "-c", _SUBMIT, service.url, service.prefix, json.dumps(request)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
