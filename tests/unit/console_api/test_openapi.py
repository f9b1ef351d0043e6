"""The OpenAPI document as generators of clients see it: short names of operations, each once."""

from __future__ import annotations

import re

from api_client.console.app import create_app
from api_client.console.settings import load_console_settings


def test_operations_have_short_names_each_once() -> None:
    document = create_app(load_console_settings({}, tokens=())).openapi()
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert {"submit_job", "list_jobs", "get_job", "cancel_job", "replay_job", "register_task"} <= set(names)
    assert len(names) == len(set(names)) >= 30
    # a verb and what it is done to
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+){1,3}", name)] == []


def test_a_model_has_one_schema_in_both_directions() -> None:
    """Two of one title are taken for a mistake by generators, which leave out every answer that has one in it."""
    schemas = create_app(load_console_settings({}, tokens=())).openapi()["components"]["schemas"]
    assert [name for name in schemas if name.endswith(("-Input", "-Output"))] == []
