"""The edge to the conversion package: what it raises becomes one of our errors, by type."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.disk import is_full, no_space
from worker.models.convert.upstream import missing_package
from worker.models.hardening import ModelCodeRefusedError

# what upstream's code raises, by accident or on purpose, on inputs it does not expect
_INPUT_FAULTS = (
    ValueError, TypeError, AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError,
    ArithmeticError, struct.error, StrictDataclassError,
)  # fmt: skip

_WANTED = re.compile(r"Change value of (\w+) to (\w+) in (\S+) file")


@contextmanager
def upstream_errors(code: ErrorCode, doing: str, *, tokenizer_not_found: bool = False) -> Iterator[None]:
    """The edge to the conversion package: its exceptions become ``PackagingError``, by type.

    Args:
        code: For exceptions that only say that the input is not what upstream expects.
        doing: What was being done, for the message.
        tokenizer_not_found: Whether a missing file is a tokenizer file.
    """
    try:
        yield
    except PackagingError:
        raise
    except ModelCodeRefusedError as error:
        raise PackagingError(ErrorCode.TOKENIZER_UNSUPPORTED, str(error)) from error
    except ImportError as error:
        raise missing_package(error, doing) from error
    except MemoryError as error:
        raise PackagingError(ErrorCode.OUT_OF_MEMORY, f"{doing}: memory ran out") from error
    except SystemExit as error:  # upstream's answer of three classes to a tokenizer without this file
        missing = "tokenizer.model"
        told = ErrorCode.TOKENIZER_NOT_FOUND if tokenizer_not_found else code
        raise PackagingError(told, f"{doing}: {missing} is needed and missing", fields={"file": missing}) from error
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else str(error.args[-1]).rsplit("/", maxsplit=1)[-1]
        told = ErrorCode.TOKENIZER_NOT_FOUND if tokenizer_not_found else code
        raise PackagingError(told, f"{doing}: {missing} is needed and missing", fields={"file": missing}) from error
    except OSError as error:
        if is_full(error):
            raise no_space(Path(error.filename) if isinstance(error.filename, str) else None, error) from error
        raise PackagingError(code, f"{doing}: {_reason(error)}") from error
    except KeyError as error:
        raise PackagingError(code, f"{doing}: {error.args[0] if error.args else 'a key'} is missing") from error
    except _INPUT_FAULTS as error:
        known = _lacking_writer(error, doing) or _wanted_setting(error, code, doing)
        raise known or PackagingError(code, f"{doing}: {_reason(error)}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # the tokenizers package has no class of its own for a tokenizer.json that it cannot read
        raise PackagingError(code, f"{doing}: {_reason(error)}") from error


def _lacking_writer(error: Exception, doing: str) -> PackagingError | None:
    """A release of the package may be cut with a ``conversion`` newer than its ``gguf``, which then lacks a method."""
    if not isinstance(error, AttributeError) or type(error.obj).__name__ != "GGUFWriter":
        return None
    return PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{doing}: the converter is newer than its own writer, which has no {error.name}",
        fields={"missing": error.name},
    )


def _wanted_setting(error: Exception, code: ErrorCode, doing: str) -> PackagingError | None:
    """Upstream asks DeepSeek V3.2's owner to change a setting; what it asks for is the remedy."""
    wanted = _WANTED.search(str(error)) if isinstance(error, AssertionError) else None
    if wanted is None:
        return None
    key, value, file = wanted.groups()
    return PackagingError(
        code,
        f"{doing}: {key} is not {value} in {file}, which the converter asks for",
        remedy=f"Set {key} to {value} in {file}, or copy the file from the model's makers.",
        fields={"file": file, "key": key},
    )


def _reason(error: Exception) -> str:
    """What an exception says, in one line, without the scratch directory that its paths may begin with."""
    text = re.sub(r"[^\s'\"]*/(convert|lora)-[^/\s]+/[^/]*/", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
