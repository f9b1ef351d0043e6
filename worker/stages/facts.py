"""Public facts: what a stage says of its work, and what the manifest publishes. No path of a machine is in them.

A path of this machine tells whoever may read the bucket how it is laid out, and nothing that they can use. What later
stages need of paths is handed over apart, as :class:`~worker.stages.prepared.Prepared`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

# an absolute path of two parts or more that stands alone or in a sentence; the two slashes of a URL are none
_PATH = re.compile(r"(?:^|[\s\"'`=:(,\[<])(?:~?(?:/[^\s/]+){2,}|file:/)")


def holds_path(text: str) -> bool:
    """Whether a text holds an absolute path of a file system."""
    return _PATH.search(text) is not None


def without_paths(value: Any) -> Any:
    """JSON whose texts were written elsewhere, by an exception or a model, with an ellipsis for every path in them."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _PATH.sub("…", value) if isinstance(value, str) else value


class PublicFacts(Mapping[str, Any]):
    """Facts as JSON values; none of their texts, keys included, holds a path. Frozen."""

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        """Take a stage's facts.

        Raises:
            PackagingError: ``internal_error`` where one holds a path: a mistake of the stage.
            TypeError: one is not JSON: a mistake of the stage, too.
        """
        self._facts: dict[str, Any] = json.loads(json.dumps(dict(facts or {})))
        for key, value in self._facts.items():
            if _any_path({key: value}):
                raise PackagingError(
                    ErrorCode.INTERNAL_ERROR,
                    f"the fact {key!r} of a stage holds a path of this machine, and facts are published",
                    fields={"fact": key},
                )

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> PublicFacts:
        """Facts of a record, which another version may have written: those that hold a path are left out."""
        return cls({key: value for key, value in stored.items() if not _any_path({key: value})})

    def __getitem__(self, key: str) -> Any:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._facts == dict(other)

    __hash__ = None  # type: ignore[assignment]  # its values are not hashable

    def __repr__(self) -> str:
        return f"PublicFacts({self._facts!r})"


def _any_path(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_any_path(key) or _any_path(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(map(_any_path, value))
    return isinstance(value, str) and holds_path(value)
