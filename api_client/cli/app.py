"""Putting the commands together: the ones of this package, and those that other packages add through entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from api_client.cli.commands import console, controls, follow, jobs, outputs, reference, submit
from api_client.cli.extras import hidden_module
from api_client.contract.errors import ErrorCode, PackagingError

ENTRY_POINTS = "trainpack.commands"
PANEL_RUN, PANEL_JOBS, PANEL_CHOICES, PANEL_SERVICE = "Package", "Jobs", "Choices", "This machine"

WORKER_COMMANDS = {
    "package": ("Package one run on this machine, then exit.", PANEL_RUN),
    "ask": ("Ask a packaged model in llama.cpp, through its own chat template.", PANEL_RUN),
    "demo": ("Train a small LoRA, package it, ask it before and after.", PANEL_RUN),
    "quantize": ("Quantize a GGUF file on this machine.", PANEL_RUN),
    "recommend": ("Recommend quant types for a model and a place to run it.", PANEL_CHOICES),
    "up": ("Run Valkey, SeaweedFS and a worker on this machine.", PANEL_SERVICE),
    "worker": ("Run a worker.", PANEL_SERVICE),
    "doctor": ("Check this machine.", PANEL_SERVICE),
    "clean": ("Remove what trainpack keeps on this machine.", PANEL_SERVICE),
}
"""Commands that the worker's package adds; without it they say what to install."""

HELP = """Turns finished training runs into GGUF files: merge, convert, quantize, export.

Every command takes --json. Exit codes: 0 done, 1 the job failed, 2 bad request, 3 service not reachable; Ctrl-C is 130.
"""
EXAMPLES = """[bold]Start here[/bold]

  trainpack package /runs/42

  trainpack up          [dim]# in another terminal: trainpack submit ..., trainpack watch[/dim]
"""


def build_app() -> typer.Typer:
    """The command line with all commands that are installed."""
    app = typer.Typer(
        name="trainpack",
        cls=_InOrder,
        help=HELP,
        epilog=EXAMPLES,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    submit.register(app, PANEL_RUN)
    jobs.register(app, PANEL_JOBS)
    follow.register(app, PANEL_JOBS)
    outputs.register(app, PANEL_JOBS)
    reference.register(app, PANEL_CHOICES)
    controls.register(app, PANEL_SERVICE)
    console.register(app, PANEL_SERVICE)
    problems = [problem for point in entry_points(group=ENTRY_POINTS) if (problem := _load(point, app))]
    present = {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands}
    for name in WORKER_COMMANDS.keys() - present:
        _add_missing(app, name, "; ".join(problems))
    return app


_ORDER = (
    *("package", "ask", "submit", "quantize", "evaluate", "demo"),
    *("list", "status", "watch", "logs", "wait", "outputs", "cancel", "replay"),
    *("checkpoints", "templates", "quant-types", "recommend"),
    *("up", "worker", "console", "limits", "fairness", "pause", "resume", "doctor", "clean"),
)


class _InOrder(TyperGroup):
    """Lists commands by what they are for; what another package added comes last, by name."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # the form that typer calls
        """Names, as help and completion show them."""
        known = [name for name in _ORDER if name in self.commands]
        return [*known, *sorted(self.commands.keys() - {*known})]


def _load(point: EntryPoint, app: typer.Typer) -> str | None:
    """Let a package add its commands; why it could not, if it could not."""
    try:
        point.load()(app)
    except ImportError as error:
        hidden = hidden_module(error)
        return str(error) if hidden is None else hidden.message
    return None


def _add_missing(app: typer.Typer, name: str, reason: str) -> None:
    help_text, panel = WORKER_COMMANDS[name]

    def missing() -> NoReturn:
        raise PackagingError(
            ErrorCode.DEPENDENCY_MISSING,
            f"trainpack {name} needs the worker, which cannot be loaded" + (f": {reason}" if reason else ""),
            remedy="Take what hides it off PYTHONPATH."
            if "hides trainpack" in reason
            else "Install it: pip install 'trainpack[worker,embedded]'.",
            fields={"command": name, "extra": "worker"},
        )

    missing.__name__ = name
    app.command(
        name,
        help=f"{help_text} [dim](needs trainpack\\[worker])[/dim]",
        rich_help_panel=panel,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(missing)


def _version() -> str:
    try:
        return version("trainpack")
    except PackageNotFoundError:
        return "unknown"


def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        context.obj.show(f"trainpack {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
