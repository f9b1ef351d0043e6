"""The jobs page with many jobs: counts, search, order, pages, several jobs at once; views of what no longer exists."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from api_client.contract.job import Job
from tests.integration.console.running import running_console
from tests.integration.harness import Installation, eventually
from tests.integration.pages.gallery import multiply

pytestmark = pytest.mark.integration

MANY = 1200


def shown_ids(page: httpx.Response) -> list[str]:
    return re.findall(r'id="row-([^"]+)"', page.text)


def token_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf_token" value="([^"]*)"', page.text)
    assert found is not None
    return found[1]


def tiles(page: httpx.Response) -> dict[str, int]:
    pairs = re.findall(r'<a class="tile[^>]*><b>(\d+)</b> <(?:span|code)[^>]*>(?:<svg.*?</svg>)?([^<]+)<', page.text)
    return {name: int(count) for count, name in pairs}


@pytest.fixture(scope="module")
def multiplied(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, dict[str, Job]]]:
    installation = Installation(valkey, tmp_path_factory.mktemp("many"))
    try:
        installation.start_worker()
        jobs = {
            "good": installation.wait(installation.submit("good", labels={"team": "red"})),
            "bad": installation.wait(installation.submit("bad", labels={"team": "blue", "merge": "permanent"})),
        }
        multiply(installation, [*jobs.values()], MANY)
        yield installation, jobs
    finally:
        installation.close()


@pytest.fixture
def many(multiplied: tuple[Installation, dict[str, Job]]) -> Installation:
    return multiplied[0]


@pytest.fixture
def page(many: Installation) -> Iterator[httpx.Client]:
    with (
        running_console(many.url, many.prefix, tokens=()) as console,
        httpx.Client(base_url=console.url, timeout=60) as client,
    ):
        yield client


def test_tiles_count_and_filter_and_the_total_is_told(page: httpx.Client) -> None:
    answer = page.get("/jobs")
    assert tiles(answer) == {
        "all jobs": MANY + 2, "queued": 0, "running": 0, "succeeded": MANY // 2 + 1, "failed": MANY // 2 + 1,
        "cancelled": 0, "base_model_invalid": MANY // 2 + 1,
    }  # fmt: skip
    assert f"50 of {MANY + 2}" in answer.text
    failed = page.get("/jobs?code=base_model_invalid&label=team=blue")
    assert f"50 of {MANY // 2 + 1}" in failed.text
    assert tiles(failed)["succeeded"] == 0, "tiles count within the labels that were asked for"
    assert len(re.findall('<code class="bad under">base_model_invalid</code>', failed.text)) == 50


def test_search_goes_over_ids_labels_paths_and_errors(
    page: httpx.Client, multiplied: tuple[Installation, dict[str, Job]]
) -> None:
    good = multiplied[1]["good"]
    assert shown_ids(page.get("/jobs", params={"search": good.id[9:].upper()})) == [good.id]
    assert len(shown_ids(page.get("/jobs", params={"search": "/out/of/run-77"}))) == 11
    assert len(shown_ids(page.get("/jobs", params={"search": "RUN=1199"}))) == 1
    assert f"of {MANY // 2 + 1}" in page.get("/jobs", params={"search": "no architectures"}).text
    assert shown_ids(page.get("/jobs", params={"search": "nowhere to be seen"})) == []


def test_pages_go_through_every_job_once_in_any_order(page: httpx.Client) -> None:
    for order in ("newest", "oldest"):
        seen: list[str] = []
        address = f"/jobs?order={order}&state=failed"
        while address:
            answer = page.get(address)
            seen += shown_ids(answer)
            following = re.search(r'<a href="([^"]+)" rel="next">', answer.text)
            address = following[1].replace("&amp;", "&") if following else ""
        assert len(seen) == len(set(seen)) == MANY // 2 + 1
        assert seen == sorted(seen, reverse=order == "newest")


def test_a_view_of_what_no_longer_exists_says_so_and_shows_the_rest(page: httpx.Client) -> None:
    answer = page.get("/jobs", params={"state": "<b>lost", "code": "base_model_invalid", "order": "\x1b[31m"})
    assert answer.status_code == 200
    assert "state=&lt;b&gt;lost, order=\\x1b[31m, which does not exist" in answer.text
    assert len(shown_ids(answer)) == 50


def test_several_jobs_at_once_are_told_before_they_are_touched(
    page: httpx.Client, many: Installation, multiplied: tuple[Installation, dict[str, Job]]
) -> None:
    jobs = multiplied[1]
    many.client.pause("queue:packaging.io", by="test")
    waiting = many.submit("waiting")
    ids = [waiting.id, jobs["bad"].id]
    told = page.get("/jobs/chosen", params={"action": "cancel", "id": ids})
    assert "Cancel 1 jobs?" in told.text
    assert "ends at once; nothing of it runs" in told.text
    assert "has ended or ends already: nothing" in told.text
    assert many.client.state(waiting.id) == "queued", "nothing has happened yet"
    done = page.post("/jobs/chosen", data={"action": "cancel", "id": ids, "csrf_token": token_of(told)})
    assert "1 jobs cancelled" in done.text
    assert "is failed" in done.text, "the one that had ended says so beside the other"
    assert many.client.state(waiting.id) == "cancelled"

    told = page.get("/jobs/chosen", params={"action": "replay", "every": "1", "search": "team=blue"})
    assert "Replay 500 jobs?" in told.text
    assert "101 more are not in this list" in told.text
    assert "runs again from Merge LoRA" in told.text
    page.post("/jobs/chosen", data={"action": "replay", "id": [waiting.id], "csrf_token": token_of(told)})
    assert many.client.state(waiting.id) == "queued"


def test_a_job_is_seen_in_its_new_state_and_code(page: httpx.Client, many: Installation) -> None:
    def state_of(job: Job) -> str:
        counts = tiles(page.get("/jobs", params={"search": job.id}))
        return next((name for name in ("queued", "succeeded", "cancelled") if counts[name]), "")

    job = many.submit("seen")
    eventually(lambda: state_of(job) == "queued", "seen as queued")
    many.client.cancel(job.id)
    eventually(lambda: state_of(job) == "cancelled", "seen as cancelled")


def test_the_overview_counts_what_ended_and_says_how_long_it_took(
    page: httpx.Client, multiplied: tuple[Installation, dict[str, Job]]
) -> None:
    many = multiplied[0]
    text = page.get("/overview").text
    ended = re.search(r"Jobs that ended · Last 24 hours: (\d+)", text)
    assert ended is not None
    assert int(ended[1]) >= MANY + 2, "copies ended when what they are copied from did"
    assert re.search(rf"<code>base_model_invalid</code></a></td><td class=\"number\">{MANY // 2 + 1}</td>", text)
    stages = text.split('id="times-head"')[1].split("</section>")[0]
    assert "of the 300 jobs" in stages
    assert "Prepare" in stages, "later stages only if one of the 300 came so far"

    def told() -> bool:
        host = page.get("/overview").text.split('id="hosts-head"')[1]
        return bool(re.search(r"\d+\.\d\d</td><td class=\"number\">[\d.]+ [GT]B free of [\d.]+ [GT]B", host))

    assert many.workers[0].process.poll() is None
    eventually(told, "the host's load and disk are told")
