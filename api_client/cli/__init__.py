"""The command line ``trainpack``. Reading order: ``app`` -> ``commands`` -> ``render``; errors end in ``failures``.

Nothing is imported before :func:`main` runs, so that a Ctrl-C while the rest is loading ends without a traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main() -> None:
    """Console script entry: run the command line of this process and exit with its code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # As shells report it; what says so too may not be loaded yet.
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit code; errors are shown, never raised.
    """
    import typer

    from api_client.cli.app import build_app
    from api_client.cli.failures import INTERRUPTED, exit_code, report, unexpected, usage_error
    from api_client.cli.output import standard_output
    from api_client.cli.translate import translate_help
    from api_client.contract.errors import PackagingError

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
