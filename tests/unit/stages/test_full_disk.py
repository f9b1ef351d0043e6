"""A quota that fills while a conversion is planned is no fault of the base model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.stages.conftest import TinyRun

SCRIPT = """
import json, resource, sys
from pathlib import Path
from api_client.contract.errors import PackagingError
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from tests.harness import run_stages
from worker.service.supervisor.child import as_packaging_error
request = PackagingRequest(**json.loads(sys.argv[1]))
scratch = Path(sys.argv[2])
done = run_stages(request, scratch, until=StageName.MERGE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    run_stages(request, scratch, until=StageName.CONVERT, done=done)
except Exception as error:
    print(json.dumps({"told": as_packaging_error(error).to_dict()}))
"""


@pytest.mark.parametrize(("most_bytes", "where"), [(100, "/scratch/convert-"), (100_000, ".gguf")])
def test_a_limit_met_while_converting_is_told_as_want_of_room(
    tiny: TinyRun, tmp_path: Path, most_bytes: int, where: str
) -> None:
    """RLIMIT_FSIZE stands in for the quota: the kernel refuses the bytes beyond it."""
    request = tiny.request().model_dump_json(exclude_unset=True)
    command = [sys.executable, "-c", SCRIPT, request, str(tmp_path / "scratch"), str(most_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    told = json.loads(done.stdout.splitlines()[-1])["told"]
    assert told["code"] == "disk_space_insufficient"
    assert where in told["message"]
