import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from worker.local.doctor import (
    Check,
    check_gguf_conflict,
    check_redis,
    check_storage,
    check_workers,
    read_probe,
    run_checks,
)
from worker.local.embedded import Stack

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), workers=0) as stack:
        yield stack


@pytest.fixture
def settings(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_a_machine_with_its_services_is_well_and_torch_stays_out_of_this_process(settings: Settings) -> None:
    before = "torch" in sys.modules
    checks = {check.name: check for check in run_checks(settings)}
    assert [check for check in checks.values() if not check.ok] == []
    assert list(checks) == [
        "python",
        "packages",
        "gguf package",
        "imports",
        "redis",
        "workers",
        "storage",
        "disk",
        "directories",
        "kernel cache",
        "machine",
    ]
    assert checks["workers"].fact == "none serves"
    assert "written, read and deleted" in checks["storage"].fact
    assert checks["imports"].fact.startswith("torch ")
    assert ("torch" in sys.modules) == before


def test_what_is_wrong_is_said_with_a_remedy(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    broken = settings.model_copy(
        update={
            "redis_url": "redis://:hush@127.0.0.1:1/0",
            "s3_bucket": "misspelt",
            "home": tmp_path / "file" / "home",
            "allowed_roots": (tmp_path / "lost",),
            "kernel_cache_dir": tmp_path / "file",
            "disk_reserve_bytes": 10**18,
        }
    )
    from worker.local import doctor

    checks = [
        doctor.guarded(name, check, broken)
        for name, check in (
            ("redis", check_redis),
            ("storage", check_storage),
            ("disk", doctor.check_disk),
            ("directories", doctor.check_directories),
            ("kernel cache", doctor.check_kernel_cache),
        )
    ]
    assert [check.name for check in checks if check.ok] == []
    assert all(check.remedy for check in checks)
    assert "hush" not in str(checks)
    assert check_workers(broken).fact == "not known while Redis does not answer"


def test_a_redis_that_may_lose_jobs_is_not_well(settings: Settings) -> None:
    import redis

    with redis.Redis.from_url(settings.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            check = check_redis(settings)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert not check.ok
    assert "noeviction" in check.remedy
    assert check_redis(settings).ok


def test_the_test_object_is_gone_afterwards(settings: Settings) -> None:
    from worker.storage.s3 import S3Location, S3Storage

    assert check_storage(settings).ok
    assert S3Storage(settings.storage()).list_objects(S3Location(str(settings.s3_bucket))) == []


def test_the_gguf_distribution_is_a_conflict(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_gguf_conflict(settings).ok
    (tmp_path / "gguf-0.17.1.dist-info").mkdir()
    (tmp_path / "gguf-0.17.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf\nVersion: 0.17.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = check_gguf_conflict(settings)
    assert not check.ok
    assert "gguf 0.17.1" in check.fact


def test_a_package_that_does_not_import_is_named() -> None:
    found: dict[str, Any] = {
        "failed": {"xllamacpp": "ImportError: libgomp.so.1"},
        "devices": [],
        "torch": "2.13",
        "cuda": None,
    }
    check = read_probe(found)
    assert (check.ok, check.fact) == (False, "xllamacpp: ImportError: libgomp.so.1")
    found = {"failed": {}, "devices": ["NVIDIA H100"], "torch": "2.13", "cuda": "13.0"}
    assert read_probe(found) == Check(
        "imports", True, "torch 2.13, CUDA 13.0: NVIDIA H100; converter and llama.cpp import"
    )
