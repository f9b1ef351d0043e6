"""Where inputs and outputs lie: local paths and URLs, checked for what cannot be meant. Nothing is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

REMOTE_SCHEMES = ("s3://", "hf://")
CHECKPOINT_WORDS = ("latest", "best")
MAX_LOCATION_LENGTH = 4096
"""Linux's own bound on a path; keeps requests small, too."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL (``s3://``, ``hf://``) rather than a local path."""
    return location.startswith(REMOTE_SCHEMES)


def _location(value: Any) -> Any:
    """Make a local path absolute, so that it means the same to the worker as to the producer."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("is empty")
    if "\0" in value:
        raise ValueError("holds a NUL character")
    if len(value) > MAX_LOCATION_LENGTH:
        raise ValueError(f"is too long: {len(value)} characters, at most {MAX_LOCATION_LENGTH}")
    if "://" in value:
        return _remote_location(value)
    try:
        return str(Path(value).expanduser().absolute())
    except RuntimeError as error:  # "~name" of a user who does not exist
        raise ValueError(f"has an unknown home directory: {error}") from error


def _remote_location(value: str) -> str:
    if not is_remote(value):
        raise ValueError(f"has an unknown scheme; use a local path or one of {', '.join(REMOTE_SCHEMES)}")
    scheme, rest = value.split("://", 1)
    parts = rest.rstrip("/").split("/")
    if scheme == "s3" and not parts[0]:
        raise ValueError("names no bucket; use s3://bucket/prefix")
    if scheme == "hf" and (len(parts) != 2 or not all(parts)):
        raise ValueError("must be hf://owner/name or hf://owner/name@revision")
    return f"{scheme}://{'/'.join(parts)}"


def _checkpoint(value: Any) -> Any:
    """Leave ``latest``, ``best`` and bare names as they are: they are looked up in the run's directory."""
    if isinstance(value, str) and value.strip() and not {"/", "\0"} & set(value) and value not in (".", "..", "~"):
        return value
    return _location(value)


Location = Annotated[str, BeforeValidator(_location)]
CheckpointRef = Annotated[str, BeforeValidator(_checkpoint)]
