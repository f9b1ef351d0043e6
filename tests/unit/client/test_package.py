"""The public face of ``api_client``: exactly these names, and light to import."""

from __future__ import annotations

import subprocess
import sys

import api_client

NAMES = """
BUILTIN_TEMPLATES QUANT_TYPES Artifact ArtifactKind Attempt AttemptOutcome ErrorClass ErrorCode Event EventKind
HealthInfo ImatrixOptions Job JobState Options PackagingClient PackagingError PackagingRequest Progress QuantType
QueueInfo RequestValues SiteTemplate Stage StageName StageState TaskStatus Template TrainingTask WorkerInfo
"""


def test_exactly_these_names_are_exported() -> None:
    assert sorted(api_client.__all__) == sorted(NAMES.split())
    assert all(getattr(api_client, name).__name__ == name for name in api_client.__all__ if not name.isupper())
    assert set(dir(api_client)) == set(api_client.__all__)


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_is_light() -> None:
    assert loaded_after("import api_client") & {"pydantic", "redis", "celery", "torch", "config", "worker"} == set()


def test_a_producer_never_loads_the_worker_or_its_libraries() -> None:
    everything = "from api_client import *\nc = PackagingClient('redis://127.0.0.1:1')\nc._sender._app"
    heavy = {"config", "worker", "torch", "numpy", "transformers", "structlog", "boto3", "pydantic_settings", "psutil"}
    assert loaded_after(everything) & heavy == set()


def test_the_worker_program_itself_stays_light() -> None:
    heavy = {"torch", "numpy", "transformers", "numba", "boto3", "xllamacpp", "safetensors"}
    assert loaded_after("import worker.service.program, worker.__main__") & heavy == set()
