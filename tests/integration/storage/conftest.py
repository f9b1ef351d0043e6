import uuid

import pytest
from pydantic import SecretStr

from api_client.s3 import S3Location, S3Retry
from tests.integration.storage.proxy import proxy_before
from worker.local.embedded import Stack
from worker.storage.s3 import S3Storage

PART = 5 * 2**20
QUICK = S3Retry(attempts=3, base_s=0.01, max_s=0.02)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory):
    """A real SeaweedFS for all tests of this folder; each uses a prefix of its own."""
    with Stack(tmp_path_factory.mktemp("stack"), workers=0) as stack:
        yield stack.info


@pytest.fixture
def settings(stack):
    return stack.storage().model_copy(update={"part_size_bytes": PART, "timeout_s": 5.0})


@pytest.fixture
def prefix(stack) -> S3Location:
    return S3Location(stack.bucket, f"test-{uuid.uuid4().hex}")


@pytest.fixture
def storage(settings) -> S3Storage:
    return S3Storage(settings, retry=QUICK)


@pytest.fixture
def proxy(stack):
    with proxy_before(stack.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxied(settings, proxy) -> S3Storage:
    """The storage as seen through the proxy."""
    return S3Storage(settings.model_copy(update={"endpoint_url": proxy.url}), retry=QUICK)


@pytest.fixture
def with_secret(settings):
    """The storage with another secret key."""
    return lambda secret: S3Storage(settings.model_copy(update={"secret_key": SecretStr(secret)}), retry=QUICK)
