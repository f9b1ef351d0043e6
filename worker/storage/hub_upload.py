"""Files to a model repository of the Hugging Face Hub: large ones first, each once, then all of them by one commit.

So a repository never has half a job, and what was sent by an attempt that was cut off is not sent again: the Hub knows
large files by their SHA-256. The token is looked for where ``huggingface_hub`` looks (``HF_TOKEN``, its login file).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stop import ShouldStop, StopRequested
from worker.storage.hub import hub_endpoint, hub_library, hub_transport_error

_POLL_S = 0.2


@dataclass(frozen=True)
class HubUpload:
    """A file to be sent.

    Attributes:
        name: Its name in the repository.
        path: Where it lies.
        sha256: Its hex digest.
        keeps_other: Whether a file of that name with other content stays, where nothing may be overwritten; otherwise
            that is an error. The Hub keeps the history of what is replaced.
        replaces: Whether it takes the place of an earlier one in any case, as a record of the newest job does.
    """

    name: str
    path: Path
    sha256: str
    keeps_other: bool = False
    replaces: bool = False


@dataclass(frozen=True)
class HubCommit:
    """What a repository has become.

    Attributes:
        commit: The newest commit.
        is_private: Whether only its owner sees it.
        kept: Names of files of the repository that were left as they are.
    """

    commit: str
    is_private: bool
    kept: tuple[str, ...]


def check_hub_owner(repo: str) -> None:
    """See that there is a token, and that it is of the repository's owner.

    Raises:
        PackagingError: ``storage_denied``; ``upload_failed`` where the Hub does not answer; ``dependency_missing``.
    """
    with _mapped(repo):
        api = hub_library().HfApi(endpoint=hub_endpoint())
        if not hub_library().get_token():
            raise _denied(repo, "needs a token, and this worker has none")
        known = api.whoami()
    owner = repo.partition("/")[0]
    own = [str(known.get("name", "")), *(str(org.get("name", "")) for org in known.get("orgs") or ())]
    if owner.lower() not in (name.lower() for name in own):
        raise _denied(repo, f"is not a repository of {own[0]}, whose token this worker has")


def upload_to_hub(
    repo: str,
    files: Sequence[HubUpload],
    *,
    message: str,
    overwrite: bool,
    on_sent: Callable[[HubUpload], None],
    should_stop: ShouldStop,
) -> HubCommit:
    """Send files; where there is no repository, a private one is made. Nothing happens where all are there already.

    Args:
        repo: ``owner/name``.
        files: The files, their names unlike.
        message: Of the commit.
        overwrite: Whether files with other content may be replaced.
        on_sent: Told after each file, on the calling thread.
        should_stop: Asked while files are sent.

    Raises:
        PackagingError: ``output_exists``, ``storage_denied``, ``upload_failed``, ``dependency_missing``.
        StopRequested: as asked; nothing of the job is in the repository then.
    """
    hub = hub_library()
    with _mapped(repo):
        api = hub.HfApi(endpoint=hub_endpoint())
        api.create_repo(repo, private=True, exist_ok=True)
        info = api.model_info(repo, files_metadata=True)
        there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        new = [file for file in files if file.name not in there or not _is_same(there[file.name], file)]
        known = [file for file in new if file.name in there and not file.replaces and not overwrite]
        kept = [file for file in known if file.keeps_other]
        refused = [file.name for file in known if not file.keeps_other]
        if refused:
            raise PackagingError(
                ErrorCode.OUTPUT_EXISTS,
                f"hf://{repo} has {', '.join(refused)} already, with other content",
                remedy="Name another repository, give a model_name, or set overwrite.",
                fields={"repository": repo, "files": refused},
            )
        operations = []
        for file in files:
            if file in new and file not in kept:
                operation = hub.CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.path))
                operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # else the library reads all of it
                _beside(partial(api.preupload_lfs_files, repo, additions=[operation]), should_stop)
                operations.append(operation)
            on_sent(file)
        commit = str(info.sha)
        if operations:
            commit = str(api.create_commit(repo, operations, commit_message=message).oid)
    return HubCommit(commit, bool(info.private), tuple(file.name for file in kept))


def _is_same(sibling: Any, file: HubUpload) -> bool:
    """Whether a file of the repository has a file's content: by SHA-256, or a small one by Git's own digest."""
    if sibling.lfs is not None:
        return str(sibling.lfs.sha256) == file.sha256
    data = file.path.read_bytes() if sibling.size == file.path.stat().st_size else b""
    return bool(sibling.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest())


def _beside(work: Callable[[], object], should_stop: ShouldStop) -> None:
    """Do work that hears of no stop on another thread, and leave it alone when one is asked for."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # told on the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if should_stop():
            raise StopRequested
    if failure:
        raise failure[0]


def _denied(repo: str, why: str) -> PackagingError:
    return PackagingError(
        ErrorCode.STORAGE_DENIED,
        f"hf://{repo} {why}",
        remedy="Set HF_TOKEN for the worker to a token that may write there, or name a repository of its owner.",
        fields={"repository": repo},
    )


@contextlib.contextmanager
def _mapped(repo: str) -> Iterator[None]:
    hub_library()
    from huggingface_hub import errors

    transport_error = hub_transport_error()
    try:
        yield
    except RuntimeError as error:  # of a large file; the library puts the reason behind it
        if not isinstance(error.__cause__, (OSError, transport_error)):
            raise
        raise _failed(repo, f"a file could not be sent ({type(error.__cause__).__name__})") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
            raise _denied(repo, f"cannot be written with this worker's token (the Hub answers {status})") from error
        raise _failed(repo, f"the Hub answers {status}") from error
    except (errors.OfflineModeIsEnabled, OSError, ValueError, transport_error) as error:
        raise _failed(repo, f"the Hub does not answer as it should ({type(error).__name__})") from error


def _failed(repo: str, why: str) -> PackagingError:
    return PackagingError(
        ErrorCode.UPLOAD_FAILED,
        f"hf://{repo}: {why}",
        remedy="Check the network and the Hub, then replay from publish; the files are kept.",
        fields={"repository": repo},
    )
