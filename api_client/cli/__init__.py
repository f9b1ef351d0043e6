"""The command line ``trainpack``. Reading order: ``app`` -> ``commands`` -> ``render``; errors end in ``failures``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from api_client.errors import PackagingError


def main() -> None:
    """Console script entry: run the command line of this process and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit code; errors are shown, never raised.
    """
    from api_client.cli.app import build_app
    from api_client.cli.failures import INTERRUPTED, exit_code, report, unexpected, usage_error
    from api_client.cli.output import standard_output
    from api_client.cli.translate import translate_help

    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    output = standard_output(as_json="--json" in own)
    try:
        command = typer.main.get_command(build_app())
        translate_help(command, output.language)
        result = command.main(list(arguments), prog_name="trainpack", standalone_mode=False, obj=output)
    except PackagingError as error:
        report(output, error)
        return exit_code(error)
    except typer.TyperException as error:
        problem = usage_error(error)
        report(output, problem)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        problem = unexpected(output, error)
        report(output, problem)
        return exit_code(problem)
    return result if isinstance(result, int) else 0
