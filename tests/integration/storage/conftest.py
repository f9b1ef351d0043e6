import uuid
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from api_client.s3 import S3Location, S3Retry, StorageSettings
from tests.integration.storage.proxy import Proxy, proxy_before
from worker.local.embedded import Stack, StackInfo
from worker.storage.s3 import S3Storage

PART = 5 * 2**20
QUICK = S3Retry(attempts=3, base_s=0.01, max_s=0.02)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    """A real SeaweedFS for all tests of this folder; each uses a prefix of its own."""
    with Stack(tmp_path_factory.mktemp("stack"), workers=0) as stack:
        yield stack.info


@pytest.fixture
def settings(stack: StackInfo) -> StorageSettings:
    return stack.storage().model_copy(update={"part_size_bytes": PART, "timeout_s": 5.0})


@pytest.fixture
def prefix(stack: StackInfo) -> S3Location:
    return S3Location(stack.bucket, f"test-{uuid.uuid4().hex}")


@pytest.fixture
def storage(settings: StorageSettings) -> S3Storage:
    return S3Storage(settings, retry=QUICK)


@pytest.fixture
def proxy(stack: StackInfo) -> Iterator[Proxy]:
    with proxy_before(stack.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(settings: StorageSettings, proxy: Proxy) -> S3Storage:
    """The storage as seen through the proxy."""
    return S3Storage(settings.model_copy(update={"endpoint_url": proxy.url}), retry=QUICK)


@pytest.fixture
def with_secret(settings: StorageSettings) -> Callable[[str], S3Storage]:
    """The storage with another secret key."""
    return lambda secret: S3Storage(settings.model_copy(update={"secret_key": SecretStr(secret)}), retry=QUICK)
