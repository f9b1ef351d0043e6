"""Every page and state against axe-core, in the browser: light and wide, and dark, Chinese, on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.console.running import RunningConsole, running_console
from tests.integration.harness import Installation
from tests.integration.pages.conftest import Windows
from tests.integration.pages.gallery import Gallery, fill

pytestmark = pytest.mark.integration

WINDOWS: dict[str, dict[str, Any]] = {
    "wide": {},
    "phone, dark, Chinese": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "locale": "zh-CN",
    },
}
OPTIONS = {"resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def _stack(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Gallery]]:
    installation = Installation(valkey, tmp_path_factory.mktemp("gallery"))
    try:
        yield installation, fill(installation)
    finally:
        installation.close()


@pytest.fixture
def gallery(_stack: tuple[Installation, Gallery]) -> Gallery:
    return _stack[1]


@pytest.fixture
def shown(_stack: tuple[Installation, Gallery]) -> Iterator[RunningConsole]:
    with running_console(_stack[0].url, _stack[0].prefix, tokens=()) as console:
        yield console


@pytest.mark.parametrize("window", WINDOWS)
def test_axe_finds_nothing(shown: RunningConsole, windows: Windows, gallery: Gallery, window: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = windows.open(shown.url, **WINDOWS[window])
    findings = {}
    for name, address in gallery.addresses().items():
        page.goto(address)
        for details in page.locator("details:not(.confirm)").all():
            details.evaluate("element => { element.open = true; }")
        violations = axe.run(page, options=OPTIONS).response["violations"]
        for violation in violations:
            findings[f"{name}: {violation['id']} ({violation['impact']})"] = [
                node["html"][:200] for node in violation["nodes"][:2]
            ]
    assert findings == {}


def test_axe_finds_what_is_wrong(windows: Windows, tmp_path: Path) -> None:
    """The net itself: a picture without a text and a list that is called a log are told."""
    page_file = tmp_path / "wrong.html"
    page_file.write_text(
        "<html lang=en><title>x</title><main><h1>x</h1><img src='data:,'><ol role=log><li>a</ol></main>"
    )
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = windows.open("about:blank")
    page.goto(page_file.as_uri())
    told = {violation["id"] for violation in axe.run(page, options=OPTIONS).response["violations"]}
    assert {"image-alt", "listitem"} <= told
