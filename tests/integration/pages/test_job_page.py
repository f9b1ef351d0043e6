"""A job's page: its timeline, settings, inputs, and its log in parts, by level and text, as a file and by the line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from api_client.contract.job import Job
from tests.integration.console.running import running_console
from tests.integration.harness import Installation

pytestmark = pytest.mark.integration


@pytest.fixture
def page(running: Installation) -> Iterator[httpx.Client]:
    with (
        running_console(running.url, running.prefix, tokens=()) as console,
        httpx.Client(base_url=console.url) as client,
    ):
        yield client


@pytest.fixture
def retried(running: Installation) -> Job:
    labels = {"convert": "transient:1", "quantize": "crash:1", "verify": "noisy:1200"}
    return running.wait(running.submit(labels=labels, priority=7))


def shown(answer: httpx.Response) -> list[str]:
    return re.findall(r'<li id="e-([^"]+)"', answer.text)


def bars(answer: httpx.Response) -> list[str]:
    return re.findall(r'<rect class="bar-([a-z_]+)"', answer.text)


def test_every_attempt_is_a_bar_and_a_row(page: httpx.Client, retried: Job) -> None:
    answer = page.get(f"/jobs/{retried.id}")
    attempts = [attempt for stage in retried.stages for attempt in stage.attempts]
    assert [kind for kind in bars(answer) if kind != "wait"].count("succeeded") == len(retried.plan)
    assert {"retried", "crashed"} <= set(bars(answer))
    assert len([kind for kind in bars(answer) if kind != "wait"]) == len(attempts) == len(retried.plan) + 2
    table = answer.text.split('id="attempts"')[1].split("</table>")[0]
    assert table.count("<tr>") == len(attempts) + 1
    assert 'href="/static/icon-succeeded.svg"' in answer.text
    assert page.get("/static/icon-succeeded.svg").status_code == 200


def test_settings_say_what_was_given_and_what_is_the_default(page: httpx.Client, retried: Job) -> None:
    text = page.get(f"/jobs/{retried.id}").text.split('id="settings"')[1].split("</details>")[0]
    assert re.search(r">priority</dt><dd>7</dd>", text)
    assert re.search(r'>gguf_dtype</dt><dd class="muted">auto \(default\)</dd>', text)


def test_older_entries_come_on_demand_and_a_line_has_an_address(page: httpx.Client, retried: Job) -> None:
    answer = page.get(f"/jobs/{retried.id}")
    seen: list[str] = []
    while True:
        seen = shown(answer) + seen
        older = re.search(r'<p class="log-more"><a href="([^"]+)"', answer.text)
        if older is None or "before=" not in older[1]:
            break
        answer = page.get(older[1].replace("&amp;", "&"))
    assert len(seen) == len(set(seen)) > 1200
    assert seen == sorted(seen, key=lambda entry: tuple(map(int, entry.split("-"))))
    line = page.get(f"/jobs/{retried.id}", params={"line": seen[300]})
    assert seen[300] in shown(line)
    assert f'href="/jobs/{retried.id}?line={seen[300]}#e-{seen[300]}"' in line.text


def test_a_log_is_searched_and_filtered_by_level(page: httpx.Client, retried: Job) -> None:
    found = page.get(f"/jobs/{retried.id}", params={"find": "LINE 77"})
    assert len(shown(found)) == 11
    warnings = page.get(f"/jobs/{retried.id}", params={"level": "warning"})
    assert 0 < len(shown(warnings)) < 20
    assert len(shown(page.get(f"/jobs/{retried.id}", params={"level": "<none>", "find": ""}))) == 500


def test_the_raw_log_has_every_line(page: httpx.Client, retried: Job) -> None:
    answer = page.get(f"/jobs/{retried.id}/log.txt")
    assert answer.headers["content-disposition"] == f'attachment; filename="{retried.id}.log.txt"'
    lines = answer.text.splitlines()
    assert len([line for line in lines if re.search(r" line \d+$", line)]) == 1200
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 info    \[Job\] Job submitted", lines[0])
