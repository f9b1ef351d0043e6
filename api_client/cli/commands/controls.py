"""``limits``, ``fairness``, ``pause`` and ``resume``: what operators change while the service runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from api_client.cli.command import add_command
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from api_client.cli.render.lists import changes_table, limits_table, pauses_table
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError

_CHANGES = 20
Place = Annotated[
    str | None,
    typer.Argument(
        metavar="[PLACE]", help="queue:NAME or host:NAME, as trainpack status lists them.", show_default=False
    ),
]


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands."""
    add_command(app, limits, panel=panel)
    add_command(app, fairness, panel=panel)
    add_command(app, pause, panel=panel)
    add_command(app, resume, panel=panel)


def limits(
    output: Output,
    *,
    label: Annotated[
        str | None,
        typer.Argument(metavar="[LABEL]", help="A label, or one of its values: team, team=red.", show_default=False),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Argument(
            metavar="[LIMIT]",
            help="Stages at once; none: no bound; default: what the workers were started with.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Show how many stages may run at once per label, or change it for all workers.

    A change counts at once; what runs goes on. Without arguments also lists who changed what.
    """
    if (label is None) != (limit is None):
        problem = "give a label and a limit, or neither"
        raise PackagingError(ErrorCode.REQUEST_INVALID, problem, remedy="See `trainpack limits --help`.")
    with open_client() as client:
        if label is not None and limit is not None:
            client.set_limit(label, _limit(limit))
        limits_now, changes = client.limits(), client.changes(_CHANGES)
    if output.as_json:
        output.document({"limits": limits_now, "changes": changes})
        return DONE
    output.show(limits_table(output, limits_now, output.results.width))
    if changes:
        output.show("", changes_table(output, changes, output.results.width))
    return DONE


def _limit(text: str) -> int | Literal["none"] | None:
    if text == "default":
        return None
    if text == "none":
        return "none"
    return _number(text, "limit", "none, or default")


def fairness(
    output: Output,
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[LABEL|VALUE]",
            help="The label whose values take turns; off: none; with a weight, one of its values.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Argument(metavar="[WEIGHT]", help="Jobs begun in each round; default: 1.", show_default=False),
    ] = None,
) -> int:
    """Show by which label new jobs are begun in turn, or change it for all workers.

    So a backlog of one team does not hold up another's jobs. Priority comes first. A change counts at once.
    """
    with open_client() as client:
        if name is not None and weight is not None:
            client.set_weight(name, _weight(weight))
        elif name is not None:
            client.set_fair_label(None if name == "off" else name)
        rule = client.fairness()
    if output.as_json:
        output.document(rule)
        return DONE
    if rule.label is None:
        output.say(output.text("no_turns"))
    else:
        output.say(output.text("turns", label=rule.label))
    for value, stored in sorted(rule.weights.items()):
        output.say(output.text("turn_weight", value=value, weight=stored))
    return DONE


def _weight(text: str) -> int | None:
    return None if text == "default" else _number(text, "weight", "or default")


def _number(text: str, field: str, words: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"{field}: {text!r} is no number",
        remedy=f"Give a number from 1, {words}.",
        fields={"field": field},
    )


def pause(output: Output, *, place: Place = None) -> int:
    """Begin nothing new from a queue or on a host; without one, show what is paused.

    What runs goes on. Jobs that wait say so in trainpack status.
    """
    return _set(output, place, pause=True)


def resume(output: Output, *, place: Place = None) -> int:
    """Let a paused queue or host go on; without one, show what is paused."""
    return _set(output, place, pause=False)


def _set(output: Output, place: str | None, *, pause: bool) -> int:
    with open_client() as client:
        if place is not None:
            (client.pause if pause else client.resume)(place)
        pauses = client.pauses()
    if output.as_json:
        output.document({"paused": pauses})
    elif pauses:
        output.show(pauses_table(output, pauses, output.results.width))
    else:
        output.say(output.text("nothing_paused"))
    return DONE
