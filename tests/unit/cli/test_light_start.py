"""What the command line loads before it knows what is asked: people wait for it at every command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("redis", "celery", "kombu", "boto3", "torch", "transformers", "numpy", "asyncio", "http.client")
CODE = f"""
import contextlib, io, json, sys
from api_client.cli import run
with contextlib.redirect_stdout(io.StringIO()) as out:
    code = run(sys.argv[1:])
assert "Usage: trainpack" in out.getvalue()
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["quantize", "--help"]])
def test_help_loads_no_package_of_the_service_nor_of_the_model(arguments: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-P", "-c", CODE, *arguments], check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == []
