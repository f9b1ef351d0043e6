"""Whether jobs may publish to a place outside: the one bound for the Hub and for registries."""

from __future__ import annotations

from collections.abc import Sequence

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.upload_targets import UploadTarget


def check_target(target: UploadTarget, allowed: Sequence[str] | None) -> None:
    """Refuse a target that jobs may not use.

    Args:
        target: Where the files are to go.
        allowed: Beginnings of targets, as far as a ``/`` or ``:``, such as ``hf://acme``; ``None`` allows every one.

    Raises:
        PackagingError: ``path_not_allowed``.
    """
    if allowed is None:
        return
    text = str(target)
    for beginning in (entry.rstrip("/") for entry in allowed):
        if text == beginning or text.startswith((f"{beginning}/", f"{beginning}:")):
            return
    raise PackagingError(
        ErrorCode.PATH_NOT_ALLOWED,
        f"{text} is not among the places that this worker may publish to ({', '.join(allowed) or 'none'})",
        remedy="Use an allowed place, or extend TRAINPACK_ALLOWED_UPLOADS.",
        fields={"field": "upload_to", "target": text, "allowed_uploads": list(allowed)},
    )
