from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import S3Location, StorageSettings, make_client
from config.roots import Roots
from config.settings import Settings, StageSettings
from tests.integration.storage.conftest import PART
from tests.integration.storage.hub_server import COMMIT, Hub, hub_server
from tests.integration.storage.proxy import Fault, Proxy
from worker.stop import StopRequested
from worker.storage.inputs import fetch, fetch_file
from worker.storage.s3 import S3Storage

pytestmark = pytest.mark.integration

MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "nested/README.md": b"# x",
    "modeling_evil.py": b"open('/tmp/mark', 'w')",
    "optimizer.pt": b"pickle",
}
FETCHED = {name: data for name, data in MODEL.items() if not name.endswith((".py", ".pt"))}


def tree(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def stages(settings: StorageSettings, tmp_path: Path) -> Callable[..., StageSettings]:
    """Stage settings with the storage and a cache of this test's own."""

    def make(storage: StorageSettings | None = settings, **changes: Any) -> StageSettings:
        every = Settings(home=tmp_path / "home").for_stages()
        return every.model_copy(update={"storage": storage, **changes})

    return make


@pytest.fixture
def put_model(settings: StorageSettings, prefix: S3Location) -> Callable[[S3Location, dict[str, bytes]], str]:
    client = make_client(settings)

    def put(location: S3Location, files: dict[str, bytes]) -> str:
        for name, data in files.items():
            client.put_object(Bucket=prefix.bucket, Key=f"{location.key}/{name}", Body=data)
        return str(location)

    return put


class TestLocal:
    def test_a_path_is_checked_and_given_back(self, stages: Callable[..., StageSettings], tmp_path: Path) -> None:
        allowed = stages(allowed_roots=Roots.only(tmp_path / "models"))
        assert fetch(str(tmp_path / "models" / "base"), allowed, kind="base_model") == tmp_path / "models" / "base"
        with pytest.raises(PackagingError) as caught:
            fetch(str(tmp_path / "elsewhere"), allowed, kind="base_model")
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED

    def test_a_file_must_be_there(self, stages: Callable[..., StageSettings], tmp_path: Path) -> None:
        (tmp_path / "text.txt").write_text("x")
        assert fetch_file(str(tmp_path / "text.txt"), stages()) == tmp_path / "text.txt"
        with pytest.raises(PackagingError, match="is not a file") as caught:
            fetch_file(str(tmp_path), stages(), missing=ErrorCode.IMATRIX_INVALID)
        assert caught.value.code is ErrorCode.IMATRIX_INVALID


class TestS3:
    def test_the_data_files_of_a_prefix_are_fetched_once(
        self,
        stages: Callable[..., StageSettings],
        settings: StorageSettings,
        proxy: Proxy,
        prefix: S3Location,
        put_model: Callable[[S3Location, dict[str, bytes]], str],
    ) -> None:
        location = put_model(prefix.child("runs").child("42").child("checkpoint-900"), MODEL)
        through = stages(settings.model_copy(update={"endpoint_url": proxy.url}))
        seen = []
        directory = fetch(location, through, kind="checkpoint", report=lambda *progress: seen.append(progress))
        assert tree(directory) == FETCHED
        assert directory.parts[-2:] == ("42", "checkpoint-900")
        total = sum(map(len, FETCHED.values()))
        assert seen[-1][:3] == (total, total, "bytes")
        gets = proxy.count("GET", "checkpoint-900/")
        assert fetch(location, through, kind="checkpoint") == directory
        assert proxy.count("GET", "checkpoint-900/") == gets

    def test_a_changed_object_makes_another_entry(
        self,
        stages: Callable[..., StageSettings],
        prefix: S3Location,
        put_model: Callable[[S3Location, dict[str, bytes]], str],
    ) -> None:
        location = put_model(prefix.child("base"), {"config.json": b"{}"})
        first = fetch(location, stages(), kind="base_model")
        put_model(prefix.child("base"), {"config.json": b"[]"})
        second = fetch(location, stages(), kind="base_model")
        assert (tree(first), tree(second)) == ({"config.json": b"{}"}, {"config.json": b"[]"})

    def test_a_fetch_that_was_stopped_goes_on(
        self,
        stages: Callable[..., StageSettings],
        settings: StorageSettings,
        proxy: Proxy,
        prefix: S3Location,
        put_model: Callable[[S3Location, dict[str, bytes]], str],
    ) -> None:
        location = put_model(prefix.child("base"), {"model.safetensors": b"w" * (3 * PART)})
        through = stages(settings.model_copy(update={"endpoint_url": proxy.url, "concurrency": 1}))
        arrived = []
        with pytest.raises(StopRequested):
            fetch(
                location,
                through,
                kind="base_model",
                report=lambda done, *_: arrived.append(done),
                should_stop=lambda: bool(arrived),
            )
        proxy.seen.clear()
        directory = fetch(location, through, kind="base_model")
        assert (directory / "model.safetensors").stat().st_size == 3 * PART
        assert proxy.count("GET", "model.safetensors") < 3

    def test_the_bound_holds_for_what_no_job_needs(
        self,
        stages: Callable[..., StageSettings],
        prefix: S3Location,
        put_model: Callable[[S3Location, dict[str, bytes]], str],
        tmp_path: Path,
    ) -> None:
        bounded = stages(input_cache_bytes=250)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        directories = {}
        for name, holder in (("held", scratch), ("free", tmp_path / "gone"), ("new", tmp_path / "gone")):
            location = put_model(prefix.child(name), {"config.json": b"x" * 100 + name.encode()})
            directories[name] = fetch(location, bounded, kind="base_model", holder=holder)
        assert {name: path.exists() for name, path in directories.items()} == {
            "held": True,
            "free": False,
            "new": True,
        }

    @pytest.mark.parametrize(
        ("kind", "code"),
        [("base_model", ErrorCode.BASE_MODEL_NOT_FOUND), ("checkpoint", ErrorCode.CHECKPOINT_NOT_FOUND)],
    )
    def test_nothing_there_has_the_code_of_its_kind(
        self,
        stages: Callable[..., StageSettings],
        prefix: S3Location,
        put_model: Callable[[S3Location, dict[str, bytes]], str],
        kind: str,
        code: ErrorCode,
    ) -> None:
        with pytest.raises(PackagingError, match="holds no objects") as caught:
            fetch(str(prefix.child("none")), stages(), kind=kind)
        assert caught.value.code is code
        location = put_model(prefix.child("odd"), {"notes.docx": b"x"})
        with pytest.raises(PackagingError, match=r"none of the files that packaging reads, but notes.docx") as caught:
            fetch(location, stages(), kind=kind)
        assert caught.value.code is code

    def test_a_hostile_name_is_refused_and_nothing_written(
        self,
        stages: Callable[..., StageSettings],
        settings: StorageSettings,
        proxy: Proxy,
        prefix: S3Location,
        tmp_path: Path,
    ) -> None:
        page = f"""<ListBucketResult><IsTruncated>false</IsTruncated><Contents>
            <Key>{prefix.key}/../../../../escape.json</Key><Size>1</Size><ETag>"e"</ETag></Contents></ListBucketResult>"""
        proxy.faults.append(Fault("answer", "GET", "list-type=2", (200, {}, page.encode())))
        with pytest.raises(PackagingError, match=r"\.\./escape.json', which is not a plain") as caught:
            fetch(str(prefix), stages(settings.model_copy(update={"endpoint_url": proxy.url})), kind="base_model")
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
        assert list(tmp_path.rglob("*.json")) == []

    def test_buckets_outside_the_list_are_not_asked(
        self, stages: Callable[..., StageSettings], settings: StorageSettings, proxy: Proxy
    ) -> None:
        through = stages(settings.model_copy(update={"endpoint_url": proxy.url}), allowed_buckets=("models",))
        with pytest.raises(PackagingError) as caught:
            fetch("s3://secrets/base", through, kind="base_model")
        assert caught.value.code is ErrorCode.PATH_NOT_ALLOWED
        assert proxy.seen == []

    def test_a_single_object(
        self, stages: Callable[..., StageSettings], settings: StorageSettings, prefix: S3Location, tmp_path: Path
    ) -> None:
        (tmp_path / "imatrix.gguf").write_bytes(b"GGUF")
        S3Storage(settings).upload_file(tmp_path / "imatrix.gguf", prefix.child("imatrix.gguf"))
        path = fetch_file(str(prefix.child("imatrix.gguf")), stages())
        assert (path.name, path.read_bytes()) == ("imatrix.gguf", b"GGUF")
        with pytest.raises(PackagingError) as caught:
            fetch_file(str(prefix.child("none")), stages(), missing=ErrorCode.IMATRIX_INVALID)
        assert caught.value.code is ErrorCode.IMATRIX_INVALID


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        with hub_server() as hub:
            hub.files = dict(MODEL)
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
            yield hub

    def test_the_data_files_of_a_model_are_fetched_once_per_commit(
        self, stages: Callable[..., StageSettings], hub: Hub
    ) -> None:
        seen = []
        directory = fetch(
            "hf://owner/tiny", stages(), kind="base_model", report=lambda *progress: seen.append(progress)
        )
        assert tree(directory) == FETCHED
        assert directory.parts[-2:] == ("owner", "tiny")
        assert seen[-1][0] == sum(map(len, FETCHED.values()))
        hub.seen.clear()
        assert fetch(f"hf://owner/tiny@{COMMIT}", stages(), kind="base_model") == directory
        assert not [path for _, path in hub.seen if "/resolve/" in path]

    def test_code_is_never_asked_for(self, stages: Callable[..., StageSettings], hub: Hub) -> None:
        fetch("hf://owner/tiny@v1", stages(), kind="base_model")
        assert not [path for _, path in hub.seen if path.endswith((".py", ".pt"))]

    @pytest.mark.parametrize(
        ("status", "code", "words"),
        [
            (404, "RepoNotFound", "does not exist on the Hub, or is private"),
            (404, "RevisionNotFound", "does not exist on the Hub"),
            (403, "GatedRepo", "is gated"),
        ],
    )
    def test_what_is_not_there_or_not_ours_is_not_found(
        self, stages: Callable[..., StageSettings], hub: Hub, status: int, code: str, words: str
    ) -> None:
        hub.status["/api/"] = (status, code)
        with pytest.raises(PackagingError, match=words) as caught:
            fetch("hf://owner/tiny", stages(), kind="checkpoint")
        assert caught.value.code is ErrorCode.CHECKPOINT_NOT_FOUND
        assert not caught.value.retryable

    def test_a_hub_that_fails_or_is_away_is_a_failed_download(
        self, stages: Callable[..., StageSettings], hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.status["/api/"] = (500, "")
        with pytest.raises(PackagingError, match="does not answer") as caught:
            fetch("hf://owner/tiny", stages(), kind="base_model")
        assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(PackagingError, match=r"the Hub at http://127.0.0.1:1 does not answer") as caught:
            fetch("hf://owner/tiny", stages(), kind="base_model")
        assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
        assert "local directory" in caught.value.remedy

    def test_weights_that_arrive_changed_are_noticed(self, stages: Callable[..., StageSettings], hub: Hub) -> None:
        hub.damaged.add("model.safetensors")
        with pytest.raises(PackagingError, match=r"model.safetensors arrived changed") as caught:
            fetch("hf://owner/tiny", stages(), kind="base_model")
        assert caught.value.code is ErrorCode.DOWNLOAD_FAILED
        hub.damaged.clear()
        assert tree(fetch("hf://owner/tiny", stages(), kind="base_model")) == FETCHED

    def test_a_stop_is_heard(self, stages: Callable[..., StageSettings], hub: Hub) -> None:
        with pytest.raises(StopRequested):
            fetch("hf://owner/tiny", stages(), kind="base_model", should_stop=lambda: True)

    @pytest.mark.parametrize("location", ["hf://tiny", "hf://owner/tiny/sub", "hf://owner/..", "hf://owner/tiny@a b"])
    def test_odd_locations_are_refused(self, stages: Callable[..., StageSettings], location: str) -> None:
        with pytest.raises(PackagingError) as caught:
            fetch(location, stages(), kind="base_model")
        assert caught.value.code is ErrorCode.REQUEST_INVALID
