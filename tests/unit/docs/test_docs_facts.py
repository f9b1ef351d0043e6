"""What the documentation names exists: settings, metrics, alerts, error codes, log events, files, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api_client import ErrorCode
from api_client.console.settings import ConsoleSettings
from api_client.contract import metric_names
from api_client.contract.metric_names import Metric
from config.settings import Settings
from tests.fences import ROOT, pages

PAGES = [page for page in pages() if page.name != "licences.md"]
OTHER_SETTINGS = {"TRAINPACK_HOME", "TRAINPACK_S3_", "TRAINPACK_CONSOLE_"}
"""The home is read by the client too; the last two stand for families (``TRAINPACK_S3_*``)."""
METRICS = {value.name for value in vars(metric_names).values() if isinstance(value, Metric)}


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Path) -> None:
    known = {f"TRAINPACK_{name.upper()}" for name in Settings.model_fields}
    known |= {f"TRAINPACK_CONSOLE_{name.upper()}" for name in ConsoleSettings.model_fields}
    assert set(re.findall(r"(?<!\w)TRAINPACK_[A-Z0-9_]+", text_of(page))) - known - OTHER_SETTINGS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_and_alerts_exist(page: Path) -> None:
    rules = (ROOT / "deploy" / "prometheus" / "trainpack.rules.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    recorded = set(re.findall(r"record: (\S+)", rules))
    named = set(re.findall(r"`(trainpack_[a-z_]+)`", text_of(page)))
    assert named - METRICS - recorded == set()
    assert set(re.findall(r"`(Trainpack\w+)`", text_of(page))) - alerts == set()


def test_operators_learn_of_every_alert() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "trainpack.rules.yml").read_text()
    page = text_of(ROOT / "docs" / "operations.md")
    assert [name for name in re.findall(r"- alert: (\w+)", rules) if f"`{name}`" not in page] == []


def test_the_troubleshooting_table_names_codes_that_exist() -> None:
    table = text_of(ROOT / "docs" / "operations.md").partition("## Troubleshooting")[2]
    first_cells = re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE)
    codes = {code for cell in first_cells for code in re.findall(r"`(\w+)`", cell)}
    assert len(codes) > 10
    assert codes <= {code.value for code in ErrorCode}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = text_of(page)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:api_client|worker|config|deploy|docs|scripts|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made where the pages are read."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_that_are_linked_exist(page: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text_of(page)):
        assert section in anchors(page.parent / target if target else page), f"{target}#{section}"


def test_the_architecture_page_names_the_main_path() -> None:
    """Each module in the table exists, and the states drawn are the states there are."""
    from api_client import JobState
    from api_client.contract.job import StageState

    text = text_of(ROOT / "docs" / "architecture.md")
    for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE):
        first, *more = re.findall(r"`([^`]+)`", row)
        for name in (first, *more):
            parent = ROOT if "/" in name else (ROOT / first).parent
            assert list(parent.glob(name)), name
    job, stage = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, flags=re.DOTALL)
    assert {state.value for state in JobState} <= set(re.findall(r"[a-z]+", job))
    assert {f"s_{state.value}" for state in StageState} <= set(re.findall(r"s_[a-z]+", stage))
