"""A storage that is down, slow, refuses, breaks off or answers wrongly, met by the real publish stage of real jobs.

A real SeaweedFS behind a proxy that spoils chosen requests of chosen jobs, so that all faults run side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from api_client import AttemptOutcome, Job, JobState
from api_client.s3 import S3Location, make_client
from tests.integration.faults.table import FaultTable
from tests.integration.harness import Installation, outcomes
from tests.integration.storage.proxy import Fault, Proxy, proxy_before
from worker.local.embedded.stack import Stack
from worker.local.embedded.state import StackInfo

OK, RETRIED, FAILED = AttemptOutcome.SUCCEEDED, AttemptOutcome.RETRIED, AttemptOutcome.FAILED
TRIES = 5
"""Tries of one request within an attempt."""
OTHER_BYTES = "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="


@dataclass(frozen=True)
class Case:
    """One fault of one job.

    Attributes:
        kind: As ``proxy.Fault``; its ``method``, ``value`` and ``times`` too.
        expected: Outcomes of the publish attempts.
        code: Of the job's error, where it fails.
    """

    kind: str
    expected: list[AttemptOutcome]
    method: str = "PUT"
    value: object = None
    times: int = 1_000_000
    code: str = ""


CASES = {
    "S3 answers 500 and stays so": Case("status", [RETRIED, FAILED], value=500, code="upload_failed"),
    "S3 answers 503 and recovers": Case("status", [RETRIED, OK], value=503, times=TRIES + 1),
    "S3 refuses the credentials": Case("status", [FAILED], value=403, code="storage_denied"),
    "S3 is down and comes back": Case("drop", [RETRIED, OK], times=TRIES + 1),
    "S3 is down and stays so": Case("drop", [RETRIED, FAILED], method="HEAD", code="storage_unreachable"),
    "S3 is slow: one request without an answer in time": Case("hang", [OK], times=1),
    "S3 cuts an upload in half, twice": Case("cut_request", [OK], times=2),
    "a byte of an upload changes on its way": Case("flip_request", [OK], times=1),
    "S3 returns a wrong checksum": Case(
        "answer_header", [OK], method="HEAD", value=("x-amz-checksum-sha256", OTHER_BYTES), times=2
    ),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    with Stack(tmp_path_factory.mktemp("storage"), workers=0) as running:
        yield running.info


@pytest.fixture
def proxy(stack: StackInfo) -> Iterator[Proxy]:
    with proxy_before(stack.endpoint_url) as found:
        yield found


def start(service: Installation, stack: StackInfo, proxy: Proxy) -> None:
    service.start_worker(
        slots=4,
        max_retries=1,
        stage_registry="tests.integration.small_stages:REAL_PUBLISH",
        s3_endpoint_url=proxy.url,
        s3_access_key=stack.access_key,
        s3_secret_key=stack.secret_key,
        s3_bucket=stack.bucket,
        s3_timeout_s=3,
    )


def assert_uploaded(job: Job, stack: StackInfo) -> None:
    client = make_client(stack.storage())
    assert {artifact.kind.value for artifact in job.outputs} == {
        "gguf",
        "quantized",
        "quality",
        "checksums",
        "manifest",
    }
    for artifact in job.outputs:
        place = S3Location.parse(str(artifact.url))
        data = client.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
        assert hashlib.sha256(data).hexdigest() == artifact.sha256


def test_every_fault_of_the_storage(
    service: Installation, stack: StackInfo, proxy: Proxy, fault_table: FaultTable
) -> None:
    start(service, stack, proxy)
    jobs: dict[str, Job] = {}
    for number, (name, case) in enumerate(CASES.items()):
        job = service.submit(f"case-{number}", labels={"publish": "real"}, priority=0)
        proxy.faults.append(Fault(case.kind, case.method, f"{job.id}/merged_model.gguf", case.value, case.times))
        jobs[name] = job
    ended = {name: service.wait(job, 120) for name, job in jobs.items()}
    assert {name: outcomes(job, "publish") for name, job in ended.items()} == {n: c.expected for n, c in CASES.items()}
    for name, job in ended.items():
        fault_table.add(name, [job])
        assert (job.error or {}).get("code", "") == CASES[name].code
    proxy.faults.clear()
    for job in ended.values():
        if job.state is JobState.FAILED:
            service.client.replay(job.id)
        done = service.wait(job, 60)
        assert done.state is JobState.SUCCEEDED, done.error
        assert_uploaded(done, stack)
    assert not make_client(stack.storage()).list_multipart_uploads(Bucket=stack.bucket).get("Uploads")


def test_what_is_uploaded_is_not_sent_again(service: Installation, stack: StackInfo, proxy: Proxy) -> None:
    start(service, stack, proxy)
    job = service.submit(labels={"publish": "real"})
    second = f"{job.id}/merged_model-Q4_K_M.gguf"
    proxy.faults.append(Fault("status", "PUT", second, 503, times=TRIES))
    done = service.wait(job, 60)
    assert outcomes(done, "publish") == [RETRIED, OK]
    assert proxy.count("PUT", f"{job.id}/merged_model.gguf") == 1
    assert proxy.count("PUT", second) == TRIES + 1
    assert_uploaded(done, stack)
