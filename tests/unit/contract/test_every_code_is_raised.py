"""Every code of the table is raised, or put into a record, somewhere: a row that nobody uses is no promise."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from api_client.contract.errors import ErrorCode

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "api_client/contract/error_codes.py"


def codes_in(node: ast.AST) -> Iterator[str]:
    """Codes that an expression may be: of a name, of both arms of a condition, of an ``or``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("ErrorCode", "_C"):
        yield node.attr
    elif isinstance(node, ast.IfExp):
        yield from codes_in(node.body)
        yield from codes_in(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from codes_in(value)


def raised_in(source: str) -> Iterator[str]:
    """Codes that are handed to a call, returned, or given a name, and not only compared or looked up."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id == "errors"):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                yield from codes_in(argument)
        elif isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) and node.value is not None:
            yield from codes_in(node.value)


def test_every_code_is_raised_somewhere() -> None:
    files = [path for package in ("api_client", "config", "worker") for path in (ROOT / package).rglob("*.py")]
    raised = {name for path in files if path != TABLE for name in raised_in(path.read_text("utf-8"))}
    assert sorted(set(ErrorCode.__members__) - raised) == []


def test_a_code_that_is_only_compared_is_not_raised() -> None:
    looked_at = "if error.code is ErrorCode.A: pass\nx = {ErrorCode.B: 1}\nerrors(_C.C)\n"
    assert set(raised_in(looked_at + "raise E(_C.D if y else _C.E, '')\n")) == {"D", "E"}
