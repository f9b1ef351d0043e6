"""What a producer's type checker says: right code passes, and every line that is marked wrong is an error."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from api_client import BUILTIN_TEMPLATES, JobState, PackagingRequest, RequestValues
from api_client.contract.job import StateName
from api_client.contract.templates import BuiltinTemplate

ROOT = Path(__file__).parents[3]

CODE = """
from pathlib import Path
from api_client import ImatrixOptions, Options, PackagingClient, PackagingRequest
from api_client import QuantType, RequestValues, SiteTemplate

PackagingRequest()
PackagingRequest(
    base_model=Path("/models/base"), checkpoint="best", output_dir="s3://bucket/out",
    quant_types=["Q4_K_M", QuantType.Q8_0], imatrix={"calibration": "/c.txt"}, options={"merge_lora": False},
    task={"task_id": "t", "status": "completed", "base_model": "/b", "output_dir": "/o"}, labels={"run": "42"},
    gguf_dtype="bf16", priority=9, upload=False,
)
PackagingRequest(template="custom", options=Options(merge_lora=False), imatrix=ImatrixOptions(mode="compute"))
PackagingRequest(template=SiteTemplate("ours"), imatrix="/m.gguf", quant_types="Q8_0")
values: RequestValues = {"base_model": "/b", "companions": True}
PackagingRequest(**values).quant_types

PackagingRequest(base_model=3)  # wrong
PackagingRequest(checkpont="x")  # wrong
PackagingRequest(template="mergee")  # wrong
PackagingRequest(gguf_dtype="f8")  # wrong
PackagingRequest(priority="high")  # wrong
PackagingRequest(upload="no")  # wrong
PackagingRequest(labels=["a=b"])  # wrong
PackagingRequest(quant_types=[4])  # wrong
PackagingRequest("/models/base")  # wrong
PackagingRequest().base_modle  # wrong
PackagingRequest().priority = 3  # wrong
Options(merge_lora="yes")  # wrong
ImatrixOptions(mode="computed")  # wrong
misspelt: RequestValues = {"base": "/b"}  # wrong

client = PackagingClient("redis://127.0.0.1:6379/0")
job = client.submit(PackagingRequest(base_model="/b", output_dir="/o", template="quantize_base"))
client.wait(job.id, timeout_s=60)
client.wait(job.id, timeout=60)
client.list(state="failed", labels={"run": "42"})
client.list(state="faild")  # wrong
client.submit({"base_model": "/b"})  # wrong
client.wait(job)  # wrong
"""


def test_mypy_refuses_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(CODE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--explicit-package-bases"),
            *("--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache" / "user"), str(user)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    refused = {int(line) for line in re.findall(r"user\.py:(\d+): error", done.stdout)}
    wrong = {number for number, line in enumerate(CODE.splitlines(), 1) if line.endswith("# wrong")}
    assert refused == wrong, done.stdout


def test_what_type_checkers_know_is_what_there_is() -> None:
    assert list(RequestValues.__annotations__) == list(PackagingRequest.model_fields)
    assert list(get_args(BuiltinTemplate)) == list(BUILTIN_TEMPLATES)
    assert list(get_args(StateName)) == [state.value for state in JobState]
