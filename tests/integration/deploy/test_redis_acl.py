"""The ACL of ``deploy/compose``: a job runs under it from end to end, and it opens nothing beyond."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from tests.integration.harness import BOUND_S, ROOT, Installation, eventually
from worker.local.embedded.ports import choose_ports
from worker.local.embedded.valkey import find_program

pytestmark = pytest.mark.integration


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Address of a server with the ACL of fresh secrets."""
    secrets = tmp_path / "secrets"
    subprocess.run([str(ROOT / "deploy/compose/make-secrets.sh"), str(secrets)], check=True, capture_output=True)
    port = choose_ports({"valkey": 0})["valkey"]
    command = [str(find_program()), "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", ""]
    command += ["--aclfile", str(secrets / "users.acl"), "--dir", str(tmp_path), "--maxmemory-policy", "noeviction"]
    log = tmp_path / "valkey.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: "Ready to accept connections" in log.read_text(), "Valkey ready")
        yield (secrets / "redis_url").read_text().replace("redis:6379", f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(BOUND_S)


def test_a_job_runs_under_the_acl_and_nothing_else_does(guarded: str, tmp_path: Path) -> None:
    service = Installation(guarded, tmp_path, prefix="trainpack")
    try:
        service.start_worker()
        service.assert_settled(service.wait(service.submit()))
        assert service.client.ping().warnings == ()
        assert service.client.workers()
        assert service.client.queues()

        for refused in (["FLUSHALL"], ["CONFIG", "SET", "appendonly", "no"], ["KEYS", "*"], ["SET", "another", "1"]):
            with pytest.raises(NoPermissionError):
                service.redis.execute_command(*refused)
        nobody = Redis.from_url(guarded.replace(guarded.split("@", maxsplit=1)[0].removeprefix("redis://") + "@", ""))
        with pytest.raises(AuthenticationError):
            nobody.ping()
        nobody.close()
    finally:
        service.close()
