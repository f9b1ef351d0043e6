"""``outputs``: a job's files, listed or fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from api_client.cli.arguments import JobId
from api_client.cli.command import add_command
from api_client.cli.download import fetch_all
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from api_client.cli.render.job import outputs_table
from api_client.connection import open_client


def register(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    add_command(app, outputs, panel=panel)


def outputs(
    output: Output,
    *,
    job_id: JobId,
    download: Annotated[
        Path | None,
        typer.Option("--download", "-d", help="Fetch the files into this directory and check them.", metavar="DIR"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", metavar="", help="Replace other files of the same names.")
    ] = False,
) -> int:
    """List a job's files, or fetch them.

    With --download they are copied where they are near, else fetched from object storage, and checked either way.
    """
    with open_client() as client:
        job = client.get(client.find(job_id))
    if download is None:
        if output.as_json:
            output.document({"job_id": job.id, "state": job.state, "outputs": job.outputs, "quality": job.quality})
        elif job.outputs:
            output.show(outputs_table(output, job, output.results.width, places=False))
            output.show_whole(*(Text(artifact.url) for artifact in job.outputs if artifact.url))
        else:
            output.say(output.text("no_outputs", state=job.state.value))
        return DONE
    fetched = fetch_all(job, download.expanduser().absolute(), output, overwrite=overwrite)
    if output.as_json:
        output.document({"job_id": job.id, "files": fetched})
    else:
        for artifact in fetched:
            output.show(f"{artifact.path}  {output.text(artifact.how)}")
    return DONE
