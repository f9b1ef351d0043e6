"""The tokenizer that was packaged, in transformers: what training saw, with the template that goes into the file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.convert.consulted import without_code
from worker.models.convert.staging import stage_tokenizer, write_json
from worker.models.convert.tokenizer import TokenizerChoice
from worker.models.hardening import locked_down

_ERRORS = (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


def load_tokenizer(choice: TokenizerChoice, config: Mapping[str, Any]) -> Any:
    """Load it; code beside a tokenizer is never run.

    Args:
        choice: From ``find_tokenizer``.
        config: The model's ``config.json``, which names the tokenizer's class where the tokenizer itself does not.

    Raises:
        PackagingError: ``tokenizer_unsupported``.
    """
    import transformers

    with tempfile.TemporaryDirectory(prefix="tokenizer-") as directory:
        stage_tokenizer(Path(directory), choice)
        write_json(Path(directory) / "config.json", without_code(dict(config)))
        try:
            with locked_down():
                return transformers.AutoTokenizer.from_pretrained(
                    directory, trust_remote_code=False, local_files_only=True
                )
        except _ERRORS as error:
            raise PackagingError(
                ErrorCode.TOKENIZER_UNSUPPORTED,
                f"{choice.directory}: transformers cannot load the tokenizer to read the evaluation text: {error}",
            ) from error
