"""``console``: the HTTP API and the web pages of the service, until told to stop."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer
from rich.text import Text

from api_client.cli.arguments import parse_one_of
from api_client.cli.command import add_command
from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE
from api_client.cli.output import Output

CONSOLE_EXAMPLES = """[bold]Examples[/bold]

  trainpack console          [dim]# for yourself: loopback, no login[/dim]

  TRAINPACK_CONSOLE_TOKENS_FILE=tokens.toml trainpack console --host 0.0.0.0
"""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command."""
    add_command(app, console, panel=panel, examples=CONSOLE_EXAMPLES)


def console(
    output: Output,
    *,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; without tokens a loopback one.", metavar="HOST")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port; 0: a free one.", min=0, max=65535, metavar="PORT")
    ] = None,
    new_token: Annotated[
        str | None,
        typer.Option(
            "--new-token",
            help="Only print a table for tokens.toml with a new secret: read, submit or operate.",
            metavar="ROLE",
        ),
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
    if new_token is not None:
        return _print_token(output, new_token)
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


def _print_token(output: Output, role: str) -> int:
    """A table for ``tokens.toml``; the secret is nowhere else."""
    from api_client.console.roles import Role

    chosen = parse_one_of(role, [known.value for known in Role], "role")
    name, secret = f"{chosen}-{secrets.token_hex(2)}", secrets.token_urlsafe(32)
    if output.as_json:
        output.document({"name": name, "secret": secret, "role": chosen})
    else:
        output.show_whole(Text(f'[[tokens]]\nname = "{name}"\nsecret = "{secret}"\nrole = "{chosen}"'))
    return DONE
