"""A repository of an OCI registry: blobs and manifests are put there, and nothing is taken from it.

Source: OCI distribution specification 1.1 ("Pushing": POST then PUT of a blob, PUT of a manifest) and Docker's token
authentication (a ``Bearer`` challenge names a realm that gives tokens). Credentials are those that ``docker login``
wrote for that very host into ``config.json`` (``DOCKER_CONFIG``, else ``~/.docker``); credential helpers are not run.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import urllib3

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stop import ShouldStop, StopRequested

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_DOCKER_HUB = "https://index.docker.io/v1/"
"""Docker's name of its own registry in ``config.json``."""
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
Sent = Callable[[int], None]
"""Is told how many bytes of a blob have been read for sending."""


@dataclass(frozen=True)
class Blob:
    """A file as a registry has it.

    Attributes:
        media_type: What it is.
        path: Where it lies.
        size_bytes: Its size.
        sha256: Its hex digest.
        name: Its name, for whoever unpacks the image.
    """

    media_type: str
    path: Path
    size_bytes: int
    sha256: str
    name: str

    @property
    def digest(self) -> str:
        """As a registry writes it."""
        return f"sha256:{self.sha256}"

    def descriptor(self) -> dict[str, Any]:
        """As a manifest names it."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
            "annotations": {"org.cncf.model.filepath": self.name, "org.opencontainers.image.title": self.name},
        }


def digest_of(data: bytes) -> str:
    """Digest of a small blob, as a registry writes it: ``sha256:`` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """One repository of a registry.

    Args:
        host: The registry's host, with its port where it has one.
        name: The repository.
        plain_http: Whether to speak HTTP to it; a registry on this machine always is spoken to so, as Docker does.
    """

    def __init__(self, host: str, name: str, *, plain_http: bool = False) -> None:
        self._place = f"{host}/{name}"
        # Docker's registry is reached under another name than the one that people give
        reached = "registry-1.docker.io" if host in ("docker.io", "index.docker.io") else host
        self._scheme = "http" if plain_http or _is_loopback(host) else "https"
        self._root = f"{self._scheme}://{reached}/v2/{name}/"
        self._scope = f"repository:{name}:pull,push"
        self._basic = _credentials(host)
        self._authorization = self._basic
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=20.0, read=_TIMEOUT_S), retries=False)

    def check_writable(self) -> None:
        """Begin an upload and give it up again.

        Raises:
            PackagingError: ``storage_denied``, ``upload_failed``.
        """
        place = self._begin_upload()
        self._ask("DELETE", place, accepted=(200, 202, 204, 404, 405))

    def manifest_digest(self, tag: str) -> str | None:
        """Digest (``sha256:...``) of what a tag names now; ``None`` where it names nothing.

        Raises:
            PackagingError: ``storage_denied``, ``upload_failed``.
        """
        answer = self._ask("GET", f"manifests/{tag}", headers={"Accept": f"{MANIFEST_TYPE}, */*"}, accepted=(200, 404))
        return digest_of(answer.data) if answer.status == 200 else None

    def put_blob(self, blob: Blob, sent: Sent, should_stop: ShouldStop) -> bool:
        """Send a file unless the registry has it, which checks its digest.

        Returns:
            Whether it was sent.

        Raises:
            PackagingError: ``storage_denied``, ``upload_failed``.
            StopRequested: as asked.
        """
        if self._has(blob.digest):
            sent(blob.size_bytes)
            return False
        place = self._begin_upload()
        with blob.path.open("rb") as file:
            self._finish_upload(place, blob.digest, _Watched(file, sent, should_stop), blob.size_bytes)
        return True

    def put_bytes(self, data: bytes) -> str:
        """Send a small blob unless the registry has it; its digest. Errors as :meth:`put_blob`."""
        digest = digest_of(data)
        if not self._has(digest):
            self._finish_upload(self._begin_upload(), digest, data, len(data))
        return digest

    def put_manifest(self, tag: str, manifest: bytes) -> str:
        """Have a tag name a manifest whose blobs are there; its digest as the registry says it.

        Raises:
            PackagingError: ``storage_denied``, ``upload_failed`` also where the registry has it otherwise.
        """
        self._ask("PUT", f"manifests/{tag}", body=manifest, headers={"Content-Type": MANIFEST_TYPE}, accepted=(201,))
        digest = digest_of(manifest)
        if self.manifest_digest(tag) != digest:
            raise self._failed(f"has another manifest under {tag} than the one that was sent")
        return digest

    def _has(self, digest: str) -> bool:
        return self._ask("HEAD", f"blobs/{digest}", accepted=(200, 404)).status == 200

    def _begin_upload(self) -> str:
        answer = self._ask("POST", "blobs/uploads/", headers={"Content-Length": "0"}, accepted=(202,))
        location = answer.headers.get("Location")
        if location is None:
            raise self._failed("begins an upload without saying where")
        return urljoin(self._root, location)

    def _finish_upload(self, place: str, digest: str, body: bytes | _Watched, size_bytes: int) -> None:
        parts = urlsplit(place)
        query = urlencode([*parse_qsl(parts.query), ("digest", digest)])
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        self._ask("PUT", urlunsplit(parts._replace(query=query)), body=body, headers=headers, accepted=(201,))

    def _ask(
        self,
        method: str,
        place: str,
        *,
        accepted: tuple[int, ...],
        body: bytes | _Watched | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """One request, and a second one where the first is answered by a challenge."""
        answer = self._send(method, place, body, headers)
        if answer.status == 401 and self._authorize(answer.headers.get("WWW-Authenticate", "")):
            answer = self._send(method, place, body, headers)
        if answer.status in accepted:
            return answer
        if answer.status in (401, 403):
            raise PackagingError(
                ErrorCode.STORAGE_DENIED,
                f"the registry does not let this worker write to {self._place}" + _reason(answer.data),
                remedy="Have the worker's user run `docker login` for that registry, or name a repository of yours.",
                fields={"repository": self._place, "status": answer.status},
            )
        raise self._failed(f"answers {method} with {answer.status}{_reason(answer.data)}")

    def _send(
        self, method: str, place: str, body: bytes | _Watched | None, headers: Mapping[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        url = urljoin(self._root, place)
        sent = dict(headers or {})
        if self._authorization and urlsplit(url).netloc == urlsplit(self._root).netloc:
            sent["Authorization"] = self._authorization
        try:
            return self._http.request(method, url, body=body, headers=sent, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failed(f"does not answer ({type(error).__name__})") from error

    def _authorize(self, challenge: str) -> bool:
        """Get a token where the challenge is of that kind; whether it is worth asking again."""
        if not challenge.lower().startswith("bearer "):
            return False
        named = dict(_CHALLENGE.findall(challenge))
        realm = named.get("realm", "")
        if urlsplit(realm).scheme != "https" and self._scheme == "https":
            return False
        query = urlencode({"service": named.get("service", ""), "scope": named.get("scope") or self._scope})
        headers = {"Authorization": self._basic} if self._basic else {}
        try:
            answer = self._http.request("GET", f"{realm}?{query}", headers=headers, redirect=False)
            told = answer.json() if answer.status == 200 else {}
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._failed(f"names {realm} for tokens, which does not answer ({type(error).__name__})") from error
        token = (told.get("token") or told.get("access_token")) if isinstance(told, dict) else None
        if not isinstance(token, str):
            return False
        self._authorization = f"Bearer {token}"
        return True

    def _failed(self, what: str) -> PackagingError:
        return PackagingError(
            ErrorCode.UPLOAD_FAILED,
            f"the registry of {self._place} {what}",
            remedy="Check the registry and its address, then replay from publish.",
            fields={"repository": self._place},
        )


class _Watched:
    """A file's bytes on their way out, from its beginning, of which somebody is told, and which a stop ends."""

    def __init__(self, file: BinaryIO, sent: Sent, should_stop: ShouldStop) -> None:
        self._file = file
        self._sent = sent
        self._should_stop = should_stop

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while data := self._file.read(_BLOCK_BYTES):
            if self._should_stop():
                raise StopRequested
            self._sent(self._file.tell())
            yield data


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if ":" in host else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _credentials(host: str) -> str | None:
    """The ``Authorization`` that ``docker login`` left for a host; ``None`` where there is none to read."""
    directory = os.environ.get("DOCKER_CONFIG") or str(Path.home() / ".docker")
    try:
        known = json.loads((Path(directory) / "config.json").read_text("utf-8"))["auths"]
        names = (host, f"https://{host}", *((_DOCKER_HUB,) if host in ("docker.io", "index.docker.io") else ()))
        encoded = next(known[name]["auth"] for name in names if "auth" in known.get(name, {}))
        base64.b64decode(encoded, validate=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    return f"Basic {encoded}"


def _reason(body: bytes) -> str:
    """What a registry says of an error: `` (CODE: message)``."""
    try:
        first = json.loads(body)["errors"][0]
        return f" ({str(first['code'])[:60]}: {str(first.get('message', ''))[:200]})"
    except (ValueError, KeyError, TypeError, IndexError):
        return ""
