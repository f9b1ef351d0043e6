"""Records as someone else wrote them: no worker opens or writes anything outside its roots for them, nor dies.

A finished job's record is copied under new ids, one field of it is replaced, and the copy is replayed. The copies are
drawn by a seed, which the failing test names.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from api_client import Job, PackagingError
from api_client.contract.job_ids import new_job_id
from api_client.ledger.keys import KEY_TYPES
from tests.integration.harness import Installation, eventually
from tests.integration.record_fuzz import OpenedFiles, RecordFuzz

pytestmark = pytest.mark.integration
SEED, COPIES, ROUNDS = 20261129, 40, 2
SECRET = b"what no job may read"
TEXTS = ("", "x" * 100_000, "9" * 40, "-1", "null", "[]", "{}", "[" * 2000, "../../x", "\0", "é", '{"a": 1}', '["a"]')
WALLED = ("nonce", "labels", "template")  # what only scripts and clients look at


@pytest.fixture
def walled(service: Installation, tmp_path: Path) -> Iterator[tuple[Installation, Path, OpenedFiles]]:
    """A service whose workers may use one directory, and another one that nobody may touch."""
    (tmp_path / "allowed").mkdir()
    (secret := tmp_path / "secret").mkdir()
    (secret / "secret.gguf").write_bytes(SECRET)
    for name in ("base", "runs"):
        (tmp_path / "allowed" / name).mkdir()
    service.settings |= {
        "allowed_roots": tmp_path / "allowed",
        "stage_registry": "tests.integration.small_stages:REAL_PUBLISH",
    }
    opened = OpenedFiles(secret)
    yield service, secret, opened
    opened.close()


def forged_artifacts(secret: Path) -> list[str]:
    """Files as a forger would record them: another's path, with the right digest; names that lead elsewhere."""
    good: dict[str, Any] = {"name": "merged_model.gguf", "kind": "gguf", "sha256": hashlib.sha256(SECRET).hexdigest()}
    good |= {"path": str(secret / "secret.gguf"), "size_bytes": len(SECRET)}
    paths = [f"{secret.parent}/allowed/../secret/secret.gguf", "secret.gguf", "/proc/self/environ", "/dev/zero", "\0"]
    names = ["../../secret/written.gguf", str(secret / "written.gguf"), "..", "a/b/c", ""]
    changes: list[dict[str, Any]] = [
        {},
        *({"path": path} for path in paths),
        *({"name": name} for name in names),
        {"sha256": ""},
    ]
    return [json.dumps([good | change]) for change in changes]


def copy_of(service: Installation, done: Job, changes: dict[str, dict[str, str]]) -> str:
    """A copy of a finished job under another id, with some fields replaced."""
    job_id, keys = new_job_id(), service.keys
    for kind, source, target in (
        ("job", keys.job(done.id), keys.job(job_id)),
        ("stages", keys.stages(done.id), keys.stages(job_id)),
    ):
        fields = service.redis.hgetall(source) | ({"id": job_id} if kind == "job" else {})
        service.redis.hset(target, mapping=fields | changes.get(kind, {}))
    return job_id


def replay(service: Installation, job_id: str) -> None:
    """As a forger would; a record that no script can read is not replayed, and its message is sent all the same."""
    try:
        service.client.replay(job_id, from_stage="publish")
    except (PackagingError, RedisError, ValueError):
        service.redis.hset(service.keys.stages(job_id), mapping={"publish:state": "queued"})
        service.redis.zadd(service.keys.named("wake"), {f"{job_id}|publish": 0})


def finished(service: Installation, output: str) -> Job:
    job = service.submit(f"allowed/{output}", base_model=f"{service.directory}/allowed/base")
    done = service.wait(job, 60)
    assert done.state == "succeeded", done.error
    return done


def settled(service: Installation, job_ids: list[str]) -> bool:
    """Whether nothing of these jobs is queued or running any more, but what cannot even be told."""
    running = service.redis.zrange(service.keys.named("leases"), 0, -1)
    waiting = service.redis.zrange(service.keys.named("wake"), 0, -1) + service.redis.zrange(
        service.keys.named("due:packaging.heavy"), 0, -1
    )
    return not [member for member in running + waiting if member.split("|")[0] in job_ids]


def test_no_forged_record_leads_outside_or_ends_a_worker(walled: tuple[Installation, Path, OpenedFiles]) -> None:
    service, secret, opened = walled
    worker = service.start_worker()
    done = finished(service, "out")
    draw = random.Random(SEED)
    fields = [("job", name) for name in service.redis.hgetall(service.keys.job(done.id)) if name not in WALLED]
    fields += [("stages", name) for name in service.redis.hgetall(service.keys.stages(done.id))]
    fields += [("stages", "publish:previous"), ("stages", "prepare:facts"), ("job", "host"), ("job", "rewinds")]
    facts = json.dumps({"base_dir": str(secret), "base_name": "../../x", "tokenizer_dir": str(secret)})
    forged: list[dict[str, dict[str, str]]] = [
        {"stages": {field: text}}
        for text in forged_artifacts(secret)
        for field in ("convert:artifacts", "publish:previous", "publish:artifacts")
    ]
    forged += [{"stages": {"prepare:facts": facts}}]
    for _ in range(COPIES):
        part, name = draw.choice(fields)
        forged.append({part: {name: draw.choice((*TEXTS, str(secret), facts))}})

    ids = [copy_of(service, done, changes) for changes in forged]
    for job_id in ids:
        replay(service, job_id)
    service.redis.hset(service.keys.scratch(os.uname().nodename), mapping={ids[0]: str(secret), "..": "/", "x": "\0"})
    for name in ("sent", "wake", "leases", "expiry", "callbacks"):
        service.redis.zadd(service.keys.named(name), {"": 0, "|": 0, "no member": 1, "a|b|c": 2, "x" * 10_000: 3})
    service.redis.lpush(service.keys.named("questions"), "", "x" * 10_000)
    eventually(lambda: settled(service, ids), f"all forged jobs of seed {SEED} are dealt with", 240)

    assert worker.process.poll() is None, worker.lines[-3000:]
    assert not opened.any(), f"a file of another directory was opened; seed {SEED}"
    assert [path.name for path in secret.iterdir()] == ["secret.gguf"]
    assert (secret / "secret.gguf").stat().st_nlink == 1
    assert not (service.directory / "x-Q4_K_M.gguf").exists()
    assert finished(service, "after").state == "succeeded"


def test_no_key_of_the_map_ends_a_worker_whatever_it_holds(walled: tuple[Installation, Path, OpenedFiles]) -> None:
    service, secret, opened = walled
    worker = service.start_worker()
    fuzz = RecordFuzz(service, finished(service, "out"), secret, SEED)
    for done in fuzz.run(ROUNDS):
        time.sleep(0.05)
        assert worker.process.poll() is None, f"{done}; seed {SEED}: {worker.lines[-3000:]}"
    assert set(fuzz.counts) == set(KEY_TYPES)
    assert fuzz.goes_on(60), f"seed {SEED}: {worker.lines[-3000:]}"
    assert worker.process.poll() is None, worker.lines[-3000:]
    assert not opened.any(), f"a file of another directory was opened; seed {SEED}"
    assert [path.name for path in secret.iterdir()] == ["secret.gguf"]
    assert (secret / "secret.gguf").stat().st_nlink == 1
