"""A disk, a quota or a largest size that is full: one edge tells what the system's number means."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import room_errors, write_errors
from worker.models.convert.upstream_errors import upstream_errors
from worker.service.supervisor.child import as_packaging_error

SOURCES = Path(__file__).parents[3]
FULL = ("ENOSPC", "EDQUOT", "EFBIG")


def test_no_other_module_knows_the_numbers_of_a_full_disk() -> None:
    known = set()
    for package in ("api_client", "config", "worker", "deploy"):
        for path in (SOURCES / package).rglob("*.py"):
            names = {
                node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)
            }
            if names & set(FULL):
                known.add(str(path.relative_to(SOURCES)))
    assert known == {"api_client/disk.py"}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_wherever_it_is_met(name: str, tmp_path: Path) -> None:
    met = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(tmp_path / "x"))
    for edge in (
        upstream_errors(ErrorCode.BASE_MODEL_INVALID, "preparing LlamaForCausalLM"),
        write_errors(tmp_path / "x"),
        room_errors(tmp_path / "x"),
    ):
        with pytest.raises(PackagingError) as caught, edge:
            raise met
        assert caught.value.code is ErrorCode.DISK_SPACE_INSUFFICIENT
        assert str(tmp_path / "x") in caught.value.message
    assert as_packaging_error(met).code is ErrorCode.DISK_SPACE_INSUFFICIENT


def test_a_download_that_finds_no_room_says_so(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk."""
    script = """
import json, resource, sys
from pathlib import Path
from api_client.cli.download import _write
from api_client.disk import write_errors
from api_client.contract.errors import PackagingError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
target = Path(sys.argv[1])
try:
    with write_errors(target, 8000):
        _write(target, iter([bytes(8000)]), lambda size: None)
except PackagingError as error:
    print(json.dumps(error.to_dict()))
"""
    command = [sys.executable, "-c", script, str(tmp_path / "x")]
    error = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert error["code"] == "disk_space_insufficient"
    assert error["fields"]["needed_bytes"] == 8000
