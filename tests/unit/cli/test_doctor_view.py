"""``doctor``: its findings as text and JSON."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.cli.cli_samples import make_output, printed
from tests.unit.cli.conftest import Ran

pytest.importorskip("psutil")


def test_a_finding_is_one_line_with_its_remedy_beneath() -> None:
    from worker.local.cli.machine import _finding
    from worker.local.doctor import Check

    output = make_output()
    good, bad = Check("python", True, "CPython"), Check("redis", False, "no answer\x1b[2J\nat all", "Start it.")
    lines = printed(output, _finding(good, ascii_only=False), _finding(bad, ascii_only=True)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "✔ python       CPython",
        "x redis        no answer\\x1b[2J at all",
        "               Start it.",
    ]


def test_the_command_names_what_must_be_mended_and_exits_1(cli: Callable[..., Ran]) -> None:
    ran = cli("doctor", "--json")
    assert ran.code == 1
    found = {check["name"]: check for check in ran.document["checks"]}
    assert ran.document["ok"] is False
    assert found["redis"]["ok"] is False
    assert "trainpack up" in found["redis"]["remedy"]
    assert "secret" not in ran.out
