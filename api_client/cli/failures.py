"""How errors reach the caller: exit codes, JSON, a panel for people, a log file for what nobody expected."""

from __future__ import annotations

import os
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from api_client.cli.flags import in_flags
from api_client.cli.output import Output
from api_client.contract.error_codes import ExitCode
from api_client.contract.errors import ErrorCode, Failure, PackagingError
from api_client.ledger.address import stack_file
from api_client.words.formatting import clean

DONE, JOB_FAILED, BAD_REQUEST, NOT_REACHABLE, INTERRUPTED = ExitCode


def exit_code(error: PackagingError) -> int:
    """Exit code of a command that ends with this error."""
    return error.code.exit_code


def report(output: Output, error: PackagingError) -> None:
    """Show an error: as the one JSON document, or to a person on standard error.

    There, too, where standard output cannot be written (a full disk, a reader that has left).
    """
    if output.as_json:
        try:
            document = error.to_dict()
            output.document({"error": document | {"remedy": in_flags(document["remedy"])}})
        except OSError:
            pass
        else:
            return
    output.notes.print(error_text(output, error), soft_wrap=True)


def error_text(output: Output, error: Failure | PackagingError) -> Text:
    """Code, fact, cause and remedy; the cause only where the fact alone may not explain itself."""
    told = error.told(output.language)
    text = Text()
    text.append(f"{output.text('error')} {error.code.value}", style="bold red")
    text.append(f"\n  {_indented(in_flags(error.message))}")
    text.append(f"\n  {output.text('cause')}: ", style="bold")
    text.append(_indented(in_flags(told.cause)))
    text.append(f"\n  {output.text('remedy')}: ", style="bold")
    text.append(_indented(in_flags(told.remedy)))
    return text


def usage_error(error: typer.TyperException) -> PackagingError:
    """A wrong command line as the project's error."""
    unknown_option = getattr(error, "option_name", None)
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "trainpack")
    fields: dict[str, Any] = {"command": command}
    if unknown_option:
        fields["option"] = str(unknown_option)
    return PackagingError(
        ErrorCode.UNKNOWN_FIELD if "No such" in type(error).__name__ or unknown_option else ErrorCode.REQUEST_INVALID,
        clean(error.format_message()),
        remedy=f"See `{command} --help`.",
        fields=fields,
    )


def unexpected(output: Output, error: BaseException) -> PackagingError:
    """An error that nobody foresaw: its traceback goes to a file, the caller gets the file's name."""
    path = _write_traceback(error)
    what = clean(f"{type(error).__name__}: {error}".splitlines()[0])
    return PackagingError(
        ErrorCode.INTERNAL_ERROR,
        output.text("unexpected", what=what, path=path),
        remedy=f"Report it with {path}.",
        fields={"log": str(path), "type": type(error).__name__},
    )


def _write_traceback(error: BaseException) -> Path:
    name = f"trainpack-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
    text = "".join(traceback.format_exception(error))
    for directory in (stack_file().parent / "logs", Path(tempfile.gettempdir())):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / name
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    return Path(os.devnull)


def _indented(text: str) -> str:
    return clean(text).replace("\n", "\n  ")
