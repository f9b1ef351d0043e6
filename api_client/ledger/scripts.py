"""Lua scripts: every change of a job's state is one of them, so that it happens whole or not at all."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from api_client.ledger.text_redis import RedisPipe, TextRedis


class Script:
    """One Lua script, run with named arguments.

    Args:
        redis: Connection pool to run on.
        prefix: Key prefix.
        package: Package that holds the ``.lua`` file.
        name: File name without the suffix; its head comment lists arguments and answers.
    """

    def __init__(self, redis: TextRedis, prefix: str, package: str, name: str) -> None:
        prelude = files("api_client.ledger.lua").joinpath("prelude.lua").read_text("utf-8")
        body = files(package).joinpath(f"{name}.lua").read_text("utf-8")
        self._script = redis.register_script(f"{prelude}\n{body}")
        self._prefix = prefix

    def __call__(self, **arguments: Any) -> list[Any]:
        """Run the script; nested answers come back as nested lists of strings.

        What UTF-8 cannot say (a lone surrogate, from a file name that is no UTF-8) arrives as ``?``.
        """
        answer: list[Any] = self._script(args=self._texts(arguments))
        return answer

    def into(self, pipe: RedisPipe, **arguments: Any) -> None:
        """Put a call into a pipeline, which answers it in its place."""
        self._script(args=self._texts(arguments), client=pipe)

    def _texts(self, arguments: dict[str, Any]) -> list[Any]:
        return [self._prefix, json.dumps(arguments, ensure_ascii=False).encode("utf-8", "replace")]
