"""The text that an importance matrix is computed from: the user's own file, or the one shipped with the project.

``calibration.txt`` was written for this project: prose in many languages, programs, conversations, mathematics, lists
and data. A text of the kind the model will be used on gives better files.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError

DEFAULT_NAME = "trainpack-calibration"


@dataclass(frozen=True)
class Calibration:
    """A calibration text and the name that files record for it.

    Attributes:
        name: The name.
        text: The text.
        special_tokens: Whether what looks like a special token is one: in chats that a template has rendered.
    """

    name: str
    text: str
    special_tokens: bool = False


def load_calibration(path: Path | None = None) -> Calibration:
    """The user's text, or the shipped one where no path is given.

    Raises:
        PackagingError: ``request_invalid`` where the file cannot be read.
    """
    return _default() if path is None else _read(path)


def _default() -> Calibration:
    text = resources.files(__package__).joinpath("calibration.txt").read_text(encoding="utf-8")
    return Calibration(DEFAULT_NAME, text)


def _read(path: Path) -> Calibration:
    """A file from anybody: only its base name is recorded, bytes that are not UTF-8 are replaced."""
    try:
        if not path.is_file():
            raise PackagingError(ErrorCode.REQUEST_INVALID, f"calibration text {path} is not a file")
        return Calibration(path.name, path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        message = f"calibration text {path} cannot be read: {error.strerror}"
        raise PackagingError(ErrorCode.REQUEST_INVALID, message) from error
