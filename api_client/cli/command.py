"""Turning a plain function into a command: its parameters become arguments and options, ``--json`` is added."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from api_client.cli.failures import DONE, INTERRUPTED
from api_client.cli.flags import FlagGroup

_JSON = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON instead of text.")]


def add_command(
    app: typer.Typer,
    function: Callable[..., int],
    *,
    panel: str,
    name: str | None = None,
    examples: str | None = None,
) -> None:
    """Add a command.

    Args:
        app: The application.
        function: Takes an ``Output`` first and then, by keyword, what the command line gives; returns the exit code.
            A parameter of a type derived from :class:`FlagGroup` stands for all its flags. The docstring is the help.
        panel: Heading under which the command is listed.
        name: Name, where it is not the function's.
        examples: Shown beneath the help.
    """
    app.command(name or function.__name__, help=_help(function), rich_help_panel=panel, epilog=examples)(
        _command(function)
    )


def add_group(
    app: typer.Typer, function: Callable[..., int], *, panel: str, examples: str | None = None
) -> typer.Typer:
    """Add a command that has others beneath it, and itself runs where none of them is named.

    Args:
        app: The application.
        function: As for :func:`add_command`.
        panel: Heading under which the command is listed.
        examples: Shown beneath the help.

    Returns:
        What the commands beneath it are added to.
    """
    group = typer.Typer()
    app.add_typer(
        group,
        name=function.__name__,
        callback=_command(function),
        invoke_without_command=True,
        help=_help(function),
        rich_help_panel=panel,
        epilog=examples,
    )
    return group


def _command(function: Callable[..., int]) -> Callable[..., int]:
    """The function as typer calls it, with a flag for each of its parameters."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    groups = {parameter.name: parameter.annotation for parameter in own if _is_group(parameter.annotation)}
    flags = {name: group.parameters() for name, group in groups.items()}

    def command(typer_context: typer.Context, **values: Any) -> int:
        del values["as_json"]  # already known to the output, which must exist before the line is parsed
        if typer_context.invoked_subcommand is not None:
            return DONE
        given = functools.partial(_given, typer_context)
        for parameter, group in groups.items():
            values[parameter] = group.of({flag.name: values.pop(flag.name) for flag in flags[parameter]}, given)
        try:
            return function(typer_context.obj, **values)
        except KeyboardInterrupt:
            typer_context.obj.say(typer_context.obj.text("interrupted"))
            return INTERRUPTED

    parameters = [
        inspect.Parameter("typer_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(
            flag
            for parameter in own
            for flag in flags.get(parameter.name, [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
        ),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
    ]
    command.__name__ = function.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _given(context: typer.Context, name: str) -> bool:
    """Whether a parameter's value comes from the command line, not from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, FlagGroup)


def _help(function: Callable[..., int]) -> str:
    """The docstring with its paragraphs on one line each, so that they wrap where the terminal does."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
