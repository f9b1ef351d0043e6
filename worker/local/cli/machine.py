"""``worker`` and ``doctor``: this machine as a worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from rich.text import Text

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, JOB_FAILED
from api_client.cli.output import Output
from api_client.cli.render.states import mark
from api_client.ledger.address import find_redis_url
from api_client.words.formatting import one_line

if TYPE_CHECKING:
    from worker.local.doctor import Check

_NAME_WIDTH = 12


def run_worker(output: Output) -> int:
    """Run a worker until it is told to stop.

    Settings come from TRAINPACK_*; without an address it joins the embedded stack that runs. SIGTERM drains: the stage
    stops at a safe point and is handed back. With --json its log is JSON.
    """
    with needs_extra("worker"):
        from api_client.client import PackagingClient
        from config.settings import load_settings
        from config.site_templates import load_site_templates
        from worker.service import program as service
    overrides = stack_overrides()
    if output.as_json:
        overrides["log_format"] = "json"
    settings = load_settings(**overrides)
    # what is wrong from the start is told as every command tells it; later the worker logs it, or waits
    load_site_templates(settings.templates_file)
    with PackagingClient(settings.redis_url, key_prefix=settings.key_prefix) as client:
        client.ping()
    return service.run(settings)


def stack_overrides() -> dict[str, Any]:
    """Settings of the embedded stack that runs, as far as the environment does not say otherwise."""
    if os.environ.get("TRAINPACK_REDIS_URL"):
        return {}
    from config.settings import load_settings
    from worker.local.embedded.state import read_stack

    info = read_stack(load_settings().home)
    if info is None:
        return {"redis_url": find_redis_url()}
    given = {name: value for name, value in info.environment().items() if not os.environ.get(name)}
    return {name.removeprefix("TRAINPACK_").lower(): value for name, value in given.items()}


def doctor(output: Output) -> int:
    """Check this machine: packages, Redis, object storage, disk, converter.

    Changes nothing. Exits 1 if something must be mended before a worker can run here.
    """
    with needs_extra("worker"):
        from config.settings import load_settings
        from worker.local.doctor import run_checks
    settings = load_settings(**stack_overrides())
    with output.notes.status(output.text("checking")) if output.live else contextlib.nullcontext():
        checks = run_checks(settings)
    well = all(check.ok for check in checks)
    if output.as_json:
        output.document({"ok": well, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            output.show(_finding(check, ascii_only=output.results.options.ascii_only))
    return DONE if well else JOB_FAILED


def _finding(check: Check, *, ascii_only: bool) -> Text:
    """A check in one line, its remedy beneath."""
    line = mark("succeeded" if check.ok else "failed", ascii_only=ascii_only)
    line.append(f" {check.name:<{_NAME_WIDTH}} ", style="bold")
    line.append(one_line(check.fact), style="" if check.ok else "red")
    if check.remedy:
        line.append(f"\n  {'':<{_NAME_WIDTH}} {one_line(check.remedy)}", style="dim" if check.ok else "yellow")
    return line
