"""Turning a plain function into a command: its parameters become arguments and options, ``--json`` is added."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer

from api_client.cli.failures import INTERRUPTED
from api_client.cli.flags import RequestFlags, flag_parameters

_JSON = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON instead of text.")]


class FlagGroup:
    """Flags that always travel together. A frozen dataclass derived from this, with a flag in each field's annotation.

    A command with a parameter of such a type has all its flags.
    """


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
            A parameter of the type :class:`RequestFlags` or :class:`FlagGroup`, or of one derived from these, stands
            for all its flags. The docstring is the help.
        panel: Heading under which the command is listed.
        name: Name, where it is not the function's.
        examples: Shown beneath the help.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    request, kind = next(
        ((parameter.name, parameter.annotation) for parameter in own if _is_flags(parameter.annotation)),
        ("", RequestFlags),
    )
    flags = flag_parameters(kind) if request else []
    groups = {parameter.name: parameter.annotation for parameter in own if _is_group(parameter.annotation)}
    grouped = {name: _group_parameters(group) for name, group in groups.items()}

    def command(typer_context: typer.Context, **values: Any) -> int:
        del values["as_json"]  # already known to the output, which must exist before the line is parsed
        if request:
            named = {flag.name: values.pop(flag.name) for flag in flags}
            values[request] = kind(**{name: value for name, value in named.items() if _given(typer_context, name)})
        for parameter, group in groups.items():
            values[parameter] = group(**{flag.name: values.pop(flag.name) for flag in grouped[parameter]})
        try:
            return function(typer_context.obj, **values)
        except KeyboardInterrupt:
            typer_context.obj.say(typer_context.obj.text("interrupted"))
            return INTERRUPTED

    parameters = [
        inspect.Parameter("typer_context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *flags,
        *(
            flag
            for parameter in own
            if parameter.name != request
            for flag in grouped.get(parameter.name, [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)])
        ),
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON),
    ]
    command.__name__ = function.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name or function.__name__, help=_help(function), rich_help_panel=panel, epilog=examples)(command)


def _given(context: typer.Context, name: str) -> bool:
    """Whether a parameter's value comes from the command line, not from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _is_flags(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, RequestFlags)


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, FlagGroup)


def _group_parameters(group: Any) -> list[inspect.Parameter]:
    """The fields of a group as parameters of a command."""
    kinds = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(group)
    ]


def _help(function: Callable[..., int]) -> str:
    """The docstring with its paragraphs on one line each, so that they wrap where the terminal does."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(function) or "")
