"""Writes the tables of ``docs/architectures.md`` from a run of the tests: ``python -m tests.bench.tables``.

Every cell is the outcome of the tests named above its table; nothing is entered by hand. With the reference source
(``make reference``), LoRA files are compared with upstream's own script as well. Takes about two minutes.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architectures.md"
MERGE, MORE = "test_lora_on_all_linear_layers_equals_peft", "test_more_architectures_equal_peft"
CONVERT, LORA = "test_merge_of_every_architecture", "test_lora_file_is_what_merging_adds"
FEATURE, METHOD = "test_feature_equals_peft", "test_method_equals_peft"
PATHS = ("tests/unit/adapters", "tests/unit/convert/test_convert_equality.py")
SAME = {"cohere": "command-r", "gemma3-text": "gemma3"}
"""Names that the tests of merging and those of conversion give to one architecture."""
DTYPES = {"float32", "bfloat16", "float16"}


@dataclass(eq=False)  # pytest wants its plugins hashable
class Recorder:
    """A pytest plugin: test function -> first parameter -> what failed, empty where all passed."""

    seen: dict[str, dict[str, list[str]]] = field(default_factory=lambda: defaultdict(dict))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the outcome of a test's call, or of a set-up that failed."""
        found = re.search(r"::(\w+)\[(.+)\]$", report.nodeid)
        if found is None or (report.when != "call" and report.passed):
            return
        function, parameters = found.groups()
        name = "-".join(part for part in parameters.split("-") if part not in DTYPES)
        failures = self.seen[function].setdefault(SAME.get(name, name), [])
        if not report.passed:
            failures.append(_reason(report))


def _reason(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).splitlines()[0].replace("|", "/")[:140]


def cell(outcomes: dict[str, list[str]], name: str, missing: str = "not tried") -> str:
    """One cell: yes, or what failed."""
    if name not in outcomes:
        return missing
    return "yes" if not outcomes[name] else f"**no**: {outcomes[name][0]}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def one_column(what: str, outcomes: dict[str, list[str]]) -> str:
    """A table of one question."""
    return table([what, "merge equals PEFT"], ([name, cell(outcomes, name)] for name in outcomes))


def architectures(seen: dict[str, dict[str, list[str]]]) -> str:
    """The table of architectures."""
    from tests.bench.lora_upstream import ARCHITECTURES, compare

    rows = []
    for name in dict.fromkeys([*ARCHITECTURES, *seen[MERGE]]):
        applied = cell(seen[LORA], name, "refused (below)" if name.startswith("deepseek") else "not tried")
        upstream = compare(name) if name in ARCHITECTURES else "not tried"
        rows.append([name, cell(seen[MERGE], name), cell(seen[CONVERT], name), applied, upstream])
    head = ["architecture", "merge equals PEFT", "conversion equals upstream", "LoRA file is what merging adds"]
    return table([*head, "LoRA file against upstream's script"], rows)


def main() -> None:
    """Run the tests and write the page anew between its marks."""
    recorder = Recorder()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *(str(ROOT / path) for path in PATHS)], plugins=[recorder])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(f"pytest ended with {code!r}; nothing was written")
    seen = recorder.seen
    tables = {
        "architectures": architectures(seen),
        "merged-only": one_column("architecture", seen[MORE]),
        "features": one_column("adapter feature", seen[FEATURE]),
        "methods": one_column("PEFT method", seen[METHOD]),
    }
    text = PAGE.read_text("utf-8")
    for name, made in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}{made}{end}{rest.split(end)[1]}"
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
