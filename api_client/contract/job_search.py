"""In which texts of a job somebody looks for it: one list for the command line and the console. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from api_client.contract.errors import Failure

SEARCHED_FIELDS = ("base_model", "checkpoint", "output_dir", "model_name")
"""Fields of a request, beside its labels and its task's id."""


def searched_texts(
    job_id: str, fields: Iterable[Any], labels: Mapping[str, str], task_id: str | None, failure: Failure | None
) -> Iterator[str]:
    """Everything of a job in which a search looks.

    Args:
        job_id: Its id.
        fields: What the request has in :data:`SEARCHED_FIELDS`; what is no text is passed over.
        labels: Its labels, looked for as ``key=value``.
        task_id: The id of its training task.
        failure: What it failed with: code and message.
    """
    yield job_id
    yield from (f"{key}={value}" for key, value in labels.items())
    yield from (text for text in (*fields, task_id) if isinstance(text, str) and text)
    if failure is not None:
        yield str(failure)
