"""Publishing to the Hub and to an OCI registry: against the Hub's own client and Debian's registry."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from tests.integration.storage.hub_server import TOKEN, Hub, hub_server
from tests.integration.storage.registry_server import PASSWORD, USER, RunningRegistry, login, oci_registry
from worker.stop import StopRequested
from worker.storage.hub_upload import HubCommit, HubUpload, check_hub_owner, upload_to_hub
from worker.storage.registry import MANIFEST_TYPE, Blob, Registry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the Hub's client and its HTTP library
]
CODE = ErrorCode


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        hub.exists = False
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield hub


def file(directory: Path, name: str, data: bytes, **how: bool) -> HubUpload:
    (directory / name).write_bytes(data)
    return HubUpload(name, directory / name, hashlib.sha256(data).hexdigest(), **how)


def sent(files: list[HubUpload], *, overwrite: bool = False, stop: bool = False) -> HubCommit:
    told: list[str] = []
    done = upload_to_hub(
        "owner/tiny",
        files,
        message="files",
        overwrite=overwrite,
        on_sent=lambda file: told.append(file.name),
        should_stop=lambda: stop,
    )
    assert told == [file.name for file in files]
    return done


def test_files_reach_a_private_repository_by_one_commit_and_once(hub: Hub, tmp_path: Path) -> None:
    files = [file(tmp_path, "m-Q8_0.gguf", b"GGUF" * 5000), file(tmp_path, "README.md", b"# m", keeps_other=True)]
    check_hub_owner("owner/tiny")
    done = sent(files)
    assert hub.files == {"m-Q8_0.gguf": b"GGUF" * 5000, "README.md": b"# m"}
    assert (hub.private, done.is_private, done.kept, len(hub.commits)) == (True, True, (), 1)
    hub.seen.clear()
    sent(files)
    assert len(hub.commits) == 1
    assert not [path for verb, path in hub.seen if verb == "PUT" or "commit" in path]


def test_what_was_sent_before_a_commit_is_not_sent_again(hub: Hub, tmp_path: Path) -> None:
    files = [file(tmp_path, "a.gguf", b"a" * 4000), file(tmp_path, "b.gguf", b"b" * 4000)]
    hub.status["/commit/"] = (500, "")
    with pytest.raises(PackagingError) as failed:
        sent(files)
    assert (failed.value.code, failed.value.retryable, hub.files) == (CODE.UPLOAD_FAILED, True, {})
    hub.status.clear()
    hub.seen.clear()
    sent(files)
    assert [verb for verb, _ in hub.seen if verb == "PUT"] == []
    assert sorted(hub.files) == ["a.gguf", "b.gguf"]


def test_files_of_others_stay(hub: Hub, tmp_path: Path) -> None:
    hub.exists = True
    hub.files = {"m.gguf": b"another", "README.md": b"by hand", "manifest.json": b"{}"}
    card = file(tmp_path, "README.md", b"# m", keeps_other=True)
    record = file(tmp_path, "manifest.json", b"[]", replaces=True)
    with pytest.raises(PackagingError, match=r"m\.gguf already") as refused:
        sent([file(tmp_path, "m.gguf", b"GGUF"), card, record])
    assert (refused.value.code, hub.commits) == (CODE.OUTPUT_EXISTS, [])
    assert sent([card, record]).kept == ("README.md",)
    assert hub.files == {"m.gguf": b"another", "README.md": b"by hand", "manifest.json": b"[]"}
    sent([file(tmp_path, "m.gguf", b"GGUF"), card], overwrite=True)
    assert hub.files == {"m.gguf": b"GGUF", "README.md": b"# m", "manifest.json": b"[]"}


def test_who_may_not_write_is_told_beforehand(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PackagingError, match="not a repository of somebody") as refused:
        check_hub_owner("else/tiny")
    assert refused.value.code is CODE.STORAGE_DENIED
    hub.status["/repos/create"] = (403, "")
    with pytest.raises(PackagingError, match="the Hub answers 403") as refused:
        sent([file(tmp_path, "m.gguf", b"GGUF")])
    assert refused.value.code is CODE.STORAGE_DENIED
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PackagingError, match="needs a token"):
        check_hub_owner("owner/tiny")


def test_a_hub_that_is_away_is_a_failed_upload(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PackagingError, match="does not answer") as caught:
        check_hub_owner("owner/tiny")
    assert (caught.value.code, caught.value.retryable) == (CODE.UPLOAD_FAILED, True)


def test_a_stop_leaves_the_repository_as_it_was(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        sent([file(tmp_path, "m.gguf", b"GGUF")], stop=True)
    assert hub.commits == []


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningRegistry]:
    with oci_registry(tmp_path, asks_who=True) as running:
        login(tmp_path / "docker", running.host)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        yield running


def blob(directory: Path, data: bytes) -> Blob:
    (directory / "x").write_bytes(data)
    return Blob("application/x", directory / "x", len(data), hashlib.sha256(data).hexdigest(), "x")


def image(config: str, *layers: dict[str, Any]) -> bytes:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/x+json", "digest": config, "size": 2},
        "layers": layers,
    }
    return json.dumps(manifest).encode()


def test_a_registry_takes_blobs_once_and_names_a_manifest(registry: RunningRegistry, tmp_path: Path) -> None:
    ours = Registry(registry.host, "team/model")
    ours.check_writable()
    assert ours.manifest_digest("v1") is None
    steps: list[int] = []
    data = bytes(range(256)) * 10_000
    assert ours.put_blob(blob(tmp_path, data), steps.append, lambda: False)
    assert (steps == sorted(steps), steps[-1]) == (True, len(data))
    assert not ours.put_blob(blob(tmp_path, data), steps.append, lambda: False)
    layer = blob(tmp_path, data).descriptor()
    manifest = image(ours.put_bytes(b"{}"), layer)
    digest = ours.put_manifest("v1", manifest)
    assert ours.manifest_digest("v1") == digest
    assert registry.blob("team/model", layer["digest"]) == data


def test_a_stop_ends_the_sending_of_a_blob(registry: RunningRegistry, tmp_path: Path) -> None:
    ours = Registry(registry.host, "team/model")
    with pytest.raises(StopRequested):
        ours.put_blob(blob(tmp_path, b"data"), lambda _: None, lambda: True)
    assert ours.put_blob(blob(tmp_path, b"data"), lambda _: None, lambda: False)


def test_a_registry_that_does_not_know_us_denies(registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/nowhere")
    with pytest.raises(PackagingError, match="does not let this worker write") as caught:
        Registry(registry.host, "team/model").check_writable()
    assert caught.value.code is CODE.STORAGE_DENIED
    assert "docker login" in caught.value.remedy


def test_a_manifest_without_its_blobs_is_a_failed_upload(registry: RunningRegistry) -> None:
    with pytest.raises(PackagingError, match="MANIFEST_BLOB_UNKNOWN") as caught:
        Registry(registry.host, "team/model").put_manifest("v1", image(f"sha256:{'0' * 64}"))
    assert caught.value.code is CODE.UPLOAD_FAILED


def test_a_registry_that_is_away_is_a_failed_upload() -> None:
    with pytest.raises(PackagingError, match="does not answer") as caught:
        Registry("127.0.0.1:1", "team/model").check_writable()
    assert (caught.value.code, caught.value.retryable) == (CODE.UPLOAD_FAILED, True)


class Challenger(BaseHTTPRequestHandler):
    """A registry that wants a token, and where it gives them."""

    def do_HEAD(self) -> None:
        known = self.headers["Authorization"] == "Bearer of-the-realm"
        self.send_response(200 if known else 401)
        realm = f"http://{self.headers['Host']}/token"
        self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="tests",scope="repository:m:pull,push"')
        self.end_headers()

    def do_GET(self) -> None:
        asked = self.path == "/token?service=tests&scope=repository%3Am%3Apull%2Cpush"
        known = (self.headers["Authorization"] or "").startswith("Basic ")
        self.send_response(200 if asked and known else 403)
        self.end_headers()
        self.wfile.write(b'{"token": "of-the-realm"}')

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_challenge_is_met_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Challenger)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    login(tmp_path, host)
    assert Registry(host, "m").put_bytes(b"there already") == f"sha256:{hashlib.sha256(b'there already').hexdigest()}"
    login(tmp_path, "another.test")
    with pytest.raises(PackagingError) as denied:
        Registry(host, "m").put_bytes(b"there already")
    assert denied.value.code is CODE.STORAGE_DENIED
    assert PASSWORD not in str(denied.value)
    assert USER not in str(denied.value)
    server.shutdown()
    server.server_close()
