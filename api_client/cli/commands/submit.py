"""``submit``: check a request and queue it."""

from __future__ import annotations

from typing import Annotated

import typer

from api_client.cli.arguments import DryRunOption, RunPlace
from api_client.cli.command import add_command
from api_client.cli.commands.follow import end_of, watch_and_report
from api_client.cli.flags import RequestFlags
from api_client.cli.from_run import asked_for
from api_client.cli.outlook import announce_matrix, ask_outlook, show_outlook
from api_client.cli.output import Output
from api_client.cli.render.job import headline
from api_client.connection import open_client, service_is_local

EXAMPLES = """[bold]Examples[/bold]

  trainpack submit /runs/42

  trainpack submit /runs/42/checkpoint-900 -q Q4_K_M,Q8_0 --wait

  trainpack submit --base /models/base --checkpoint /runs/42/best -o /out -q Q4_K_M -q Q8_0 --wait

  trainpack submit --task task.json --checkpoint best --label run=42 --idempotency-key run-42

  trainpack submit /runs/42 -q Q4_K_M --no-keep-unquantized --model-card --ollama

  trainpack submit -t custom --set merge_lora=off --set export_lora=on -b hf://owner/model -c /runs/42/latest -o /out

[bold]task.json[/bold]

  {"task_id": "42", "status": "completed", "base_model": "/models/base", "output_dir": "/runs/42"}
"""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    add_command(app, submit, panel=panel, examples=EXAMPLES)


def submit(
    output: Output,
    *,
    flags: RequestFlags,
    run: RunPlace = None,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", metavar="", help="Stay until the job has ended; exit 1 if it failed.")
    ] = False,
    dry_run: DryRunOption = False,
) -> int:
    """Queue a job that packages a training run.

    Of a run it is the best checkpoint by its scores, else the latest; flags decide otherwise. Without RUN and inputs it
    is the working directory.

    Merges the checkpoint's adapter into the base model, exports GGUF and quantizes it; other templates do parts of
    that (see `trainpack templates`). Prints the job's id.
    """
    request = asked_for(run, flags, output, sees_files=service_is_local())
    with open_client() as client:
        if dry_run:
            return show_outlook(output, ask_outlook(client, request))
        job = client.submit(request)
        if not output.as_json:
            announce_matrix(output, client, job)
        if wait and not output.as_json:
            return watch_and_report(client, [job.id], output)
        if wait:
            # the way back, should this end before the job
            output.say(output.text("watch_hint", id=job.id), style="dim")
            job = client.wait(job.id)
            output.document(job)
            return end_of([job])
        if output.as_json:
            output.document(job)
        else:
            output.show(headline(output, job))
            output.say(output.text("watch_hint", id=job.id), style="dim")
            if not client.workers():
                output.say(output.text("no_workers"), style="yellow")
    return 0
