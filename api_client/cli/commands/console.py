"""``console``: the HTTP API and the web pages of the service, until told to stop."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.text import Text

from api_client.cli.arguments import parse_one_of
from api_client.cli.command import add_command, add_group
from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE
from api_client.cli.output import Output
from api_client.contract.errors import ErrorCode, PackagingError

CONSOLE_EXAMPLES = """[bold]Examples[/bold]

  trainpack console          [dim]# for yourself: loopback, no login[/dim]

  trainpack console token new --role submit

  TRAINPACK_CONSOLE_TOKENS_FILE=tokens.toml trainpack console --host 0.0.0.0

[bold]tokens.toml[/bold]

  [\\[tokens]]

  name = "ci"

  role = "submit"

  secret = "sixteen-or-more-ASCII-characters-without-blanks"
"""
TOKEN_EXAMPLES = """[bold]Examples[/bold]

  trainpack console token new --role submit --name ci
"""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command, and those beneath it."""
    group = add_group(app, console, panel=panel, examples=CONSOLE_EXAMPLES)
    tokens = typer.Typer()
    group.add_typer(
        tokens,
        name="token",
        callback=_help_alone,
        invoke_without_command=True,
        help="Tokens, by which the console knows who asks.",
    )
    add_command(tokens, new_token, panel="Commands", name="new", examples=TOKEN_EXAMPLES)


def console(
    output: Output,
    *,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; without tokens a loopback one.", metavar="HOST")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port; 0: a free one.", min=0, max=65535, metavar="PORT")
    ] = None,
) -> int:
    """Serve the HTTP API and the web console until Ctrl-C.

    Joins the service that TRAINPACK_REDIS_URL names, else the embedded stack that runs. Settings, tokens above all,
    come from TRAINPACK_CONSOLE_*. With --json its log is JSON.
    """
    with needs_extra("console"):
        from api_client.console.app import create_app
        from api_client.console.logs import configure_logs
        from api_client.console.server import Console, open_socket, url_of
        from api_client.console.settings import load_console_settings
    settings = load_console_settings(host=host, port=port)
    with open_socket(settings) as listener:
        url = url_of(listener)
        if output.as_json:
            output.document({"url": url, "login": not settings.open})
        else:
            output.show(output.text("console_open" if settings.open else "console_login", url=url))
        configure_logs(as_json=output.as_json)
        Console(settings, create_app(settings)).run(sockets=[listener])
    return DONE


def _help_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _roles() -> list[str]:
    from api_client.console.roles import Role

    return [role.value for role in Role]


def new_token(
    output: Output,
    *,
    role: Annotated[
        str,
        typer.Option(
            "--role",
            help="What it may do: read, submit or operate; each may do what those before it may.",
            autocompletion=_roles,
            metavar="ROLE",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Who holds it, for the log; one is made up where not given.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Print a table for tokens.toml with a new secret; nothing is stored.

    The secret is shown this once. A console reads its tokens when it starts.
    """
    chosen = parse_one_of(role, _roles(), "role")
    with needs_extra("console"):
        from api_client.console.settings import Token
    secret = secrets.token_urlsafe(32)
    values = {"name": name or f"{chosen}-{secrets.token_hex(2)}", "role": chosen, "secret": secret}
    try:
        token = Token.model_validate(values)
    except ValidationError:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--name {name!r} is no name of a token",
            remedy="Use 1 to 64 letters, digits and . _ @ -",
            fields={"field": "name"},
        ) from None  # the chained error would show the secret
    if output.as_json:
        output.document({"name": token.name, "secret": secret, "role": chosen})
    else:
        output.show_whole(Text(f'[[tokens]]\nname = "{token.name}"\nsecret = "{secret}"\nrole = "{chosen}"'))
    return DONE
