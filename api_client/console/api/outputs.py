"""The published files of a job: what there is, and links to fetch them from object storage."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from api_client.console.api.documents import NO_JOB, Outputs, PublishedFile, errors
from api_client.console.api.parameters import JobId, Reader
from api_client.console.context import Client, DownloadLinks
from api_client.console.links import find_output
from api_client.contract.errors import ErrorCode

router = APIRouter(tags=["outputs"])
_C = ErrorCode


@router.get("/jobs/{job_id}/outputs", responses=NO_JOB)
def list_outputs(job_id: JobId, client: Client, links: DownloadLinks, _: Reader) -> Outputs:
    """List a job's outputs, with links for those that were uploaded."""
    job = client.get(job_id)
    outputs = tuple(PublishedFile(**artifact.model_dump(), link=links.try_sign(artifact)) for artifact in job.outputs)
    return Outputs(job_id=job.id, state=job.state, outputs=outputs)


@router.get(
    "/jobs/{job_id}/outputs/{name}",
    status_code=307,
    response_class=RedirectResponse,
    responses=errors(_C.JOB_NOT_FOUND, _C.OUTPUT_NOT_FOUND, _C.STORAGE_DENIED, _C.REDIS_UNREACHABLE),
)
def download_output(job_id: JobId, name: str, client: Client, links: DownloadLinks, _: Reader) -> str:
    """Go to an uploaded file. The address it leads to needs no login and is valid for a while."""
    return links.sign(find_output(client.get(job_id), name))
