"""What a callback says: enough to go on without asking, and the id to ask with."""

from __future__ import annotations

import json
from typing import Any

from api_client.contract.job import Artifact, Job
from api_client.words.language import Language

EVENT = "job.finished"
_ERROR_FIELDS = ("code", "class", "message", "remedy", "stage")


def callback_body(job: Job, delivery_id: str) -> bytes:
    """The body, UTF-8 JSON; the same for every try."""
    content = {"event": EVENT, "delivery": delivery_id, "job": job_summary(job)}
    return json.dumps(content, ensure_ascii=False).encode()


def job_summary(job: Job) -> dict[str, Any]:
    """A job without its log, attempts and tracebacks."""
    failure = job.failure
    error = failure.told(Language.EN).record() if failure else {}
    return {
        "id": job.id,
        "state": job.state.value,
        "template": job.request.template,
        "labels": job.request.labels,
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
        "error": {name: error.get(name) for name in _ERROR_FIELDS} if failure else None,
        "outputs": [_output(artifact) for artifact in job.outputs],
    }


def _output(artifact: Artifact) -> dict[str, Any]:
    return artifact.model_dump(
        mode="json", include={"name", "path", "kind", "size_bytes", "sha256", "quant_type", "url"}
    )
