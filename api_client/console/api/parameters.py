"""Parameters that several routes share."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Path, Query

from api_client.console.auth import require
from api_client.console.identity import Principal
from api_client.console.roles import Role
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.ledger.store import job_not_found

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-z]{6}")
EVENT_ID = r"^\d{1,19}(-\d{1,19})?$"
MAX_LABELS = 32


def check_job_id(job_id: Annotated[str, Path(description="Id of the job, e.g. `20260131-120000-k3v9ab`.")]) -> str:
    """A job's id; what does not look like one names no job.

    Raises:
        PackagingError: ``job_not_found``.
    """
    if not _ID.fullmatch(job_id):
        raise job_not_found(job_id[:100])
    return job_id


def parse_labels(
    label: Annotated[
        list[str] | None,
        Query(
            description="`key=value`; only jobs that have all of them.", max_length=MAX_LABELS, examples=[["run=42"]]
        ),
    ] = None,
) -> dict[str, str]:
    """Labels to filter by.

    Raises:
        PackagingError: ``request_invalid``.
    """
    labels: dict[str, str] = {}
    for text in label or ():
        key, equals, value = text.partition("=")
        if not key or not equals or key in labels:
            raise PackagingError(
                ErrorCode.REQUEST_INVALID,
                f"label {text!r} is not of the form key=value, or its key is there twice",
                fields={"field": "label"},
            )
        labels[key] = value
    return labels


JobId = Annotated[str, Depends(check_job_id)]
Labels = Annotated[dict[str, str], Depends(parse_labels)]
Reader = Annotated[Principal, Depends(require(Role.READ))]
Submitter = Annotated[Principal, Depends(require(Role.SUBMIT))]
Operator = Annotated[Principal, Depends(require(Role.OPERATE))]
