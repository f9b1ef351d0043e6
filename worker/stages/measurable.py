"""What keeps a sound model from being run here, told apart from what ends a job.

A file that converted and loads in llama.cpp is whole, whatever transformers says of its model; measuring it is a help,
and the want of it costs no job its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api_client.contract.errors import ErrorCode, PackagingError
from worker.stages.context import LeaseLost
from worker.stop import StopRequested

CANNOT_RUN = frozenset(
    {
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        ErrorCode.BASE_MODEL_INVALID,  # by transformers' measure
        ErrorCode.BASE_MODEL_QUANTIZED,
        ErrorCode.VOCABULARY_MISMATCH,
        ErrorCode.TOKENIZER_UNSUPPORTED,
        ErrorCode.WEIGHTS_NOT_FINITE,
    }
)
"""Codes that say so."""
NEVER_HIDDEN = (OSError, StopRequested, LeaseLost)
"""What ends an attempt, whatever was being measured."""
_REASON_CHARACTERS = 500


class CannotRunError(Exception):
    """The model cannot be run here; the text says why."""


@contextmanager
def running_model() -> Iterator[None]:
    """Run a model inside; whatever says that it cannot be run becomes :class:`CannotRunError`.

    Raises:
        CannotRunError: a code of :data:`CANNOT_RUN`, or anything that transformers raises on the way.
        PackagingError: any other code.
        OSError, StopRequested, LeaseLost: as they came.
    """
    try:
        yield
    except PackagingError as error:
        if error.code not in CANNOT_RUN:
            raise
        raise CannotRunError(error.message) from error
    except NEVER_HIDDEN:
        raise
    except Exception as error:  # transformers raises anything for a model that it cannot run in parts
        raise CannotRunError(f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]) from error
