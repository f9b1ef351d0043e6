"""What the new job page offers: runs that workers see, tasks that an orchestrator registered, presets, switches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

import httpx
import pytest

from api_client import PackagingError, PackagingRequest
from api_client.contract.errors import ErrorCode
from api_client.contract.task import TaskStatus, TrainingTask
from tests.integration.console.running import RunningConsole, running_console
from tests.integration.harness import Installation
from tests.unit.contract.test_checkpoints import LOSSES, make_run

pytestmark = pytest.mark.integration

HTML = "<img src=x onerror=alert(1)>"


def task(number: int | str, output_dir: str, status: TaskStatus = TaskStatus.COMPLETED) -> TrainingTask:
    return TrainingTask(task_id=str(number), status=status, base_model="/models/base", output_dir=output_dir)


@pytest.fixture
def guarded(service: Installation) -> Iterator[RunningConsole]:
    with running_console(service.url, service.prefix) as console:
        yield console


def browser(console: RunningConsole) -> httpx.Client:
    return console.client("operate", follow_redirects=True)


def test_runs_are_offered_with_what_is_known_of_them(service: Installation, guarded: RunningConsole) -> None:
    roots = service.directory / "roots"
    run = make_run(roots / HTML, LOSSES)
    service.start_worker(run_roots=f"{roots}:{service.directory / 'gone'}")
    with browser(guarded) as client:
        page = client.get("/new").text
        offers = page.split('id="runs"')[1].split("</details>")[0]
        assert "<img" not in offers
        assert HTML in unescape(offers)
        assert "eval_loss <b>1.2</b>" in offers
        assert f"<code>{service.directory / 'gone'}</code>" in offers, "what is missing is told"
        link = unescape(re.findall(r'<a class="mono" href="([^"]+)"', offers)[0])
        chosen = client.get(link).text
        assert 'value="checkpoint-200" data-look checked' in chosen, "the best is chosen"
        assert f'value="{run}"'.replace("<", "&lt;").replace(">", "&gt;") in chosen
        assert client.get("/api/v1/runs", params={"search": "nowhere"}).json()["listing"]["total"] == 0


def test_registered_scores_win_over_the_trainers(service: Installation, guarded: RunningConsole) -> None:
    run = make_run(service.directory / "run", LOSSES)
    service.start_worker()
    scores = {"checkpoint-100": {"accuracy": 0.5}, "checkpoint-1000": {"accuracy": 0.9}}
    body = {"task": task(7, str(run)).model_dump(mode="json"), "scores": scores}
    with guarded.client("submit") as client:
        assert client.post("/api/v1/tasks", json=body).json()["scores"] == scores
        assert client.post("/api/v1/tasks", json=body).status_code == 200, "again changes nothing"
        odd = client.post("/api/v1/tasks", json=body | {"scores": {"checkpoint-1": {"a": "NaN"}}})
        assert odd.status_code == 422
        assert [known["task"]["task_id"] for known in client.get("/api/v1/tasks").json()["tasks"]] == ["7"]
    with guarded.client("read") as client:
        assert client.post("/api/v1/tasks", json=body).status_code == 403
    with browser(guarded) as client:
        offers = client.get("/new?source=task").text.split('id="known-tasks"')[1].split("</details>")[0]
        assert "checkpoint-1000 · accuracy <b>0.9</b>" in offers
        chosen = client.get(unescape(re.findall(r'<a href="([^"]+)"', offers)[0])).text
        assert 'value="checkpoint-1000" data-look checked' in chosen
        assert "best by accuracy" in chosen
    asked = PackagingRequest(task=task(7, str(run)), checkpoint="best")
    assert service.client.submit(asked).request.checkpoint == "checkpoint-1000"
    elsewhere = PackagingRequest(task=task(7, "/runs/other"), checkpoint="best")
    assert service.client.submit(elsewhere).request.checkpoint == "best", "those scores are of another run"


def test_a_task_registered_with_other_paths_is_refused(service: Installation) -> None:
    client = service.client
    client.register_task(task("a", "/runs/a", TaskStatus.RUNNING))
    client.register_task(task("a", "/runs/a"))
    with pytest.raises(PackagingError, match=r"output directory /runs/a; now .*/runs/b") as caught:
        client.register_task(task("a", "/runs/b"))
    assert caught.value.code is ErrorCode.TASK_CONFLICT
    known = client.task("a")
    assert known is not None
    assert (known.task.status, known.task.output_dir) == ("completed", "/runs/a")
    client.register_task(task("a", "/runs/b"), replace=True)
    client.register_task(task(HTML, "/runs/c"))
    assert {known.task.task_id for known in client.tasks()} == {HTML, "a"}
    service.redis.hset(service.keys.named("jobs:tasks"), "a", "no JSON")
    assert client.task("a") is None
    assert [known.task.task_id for known in client.tasks()] == [HTML]


def test_switches_that_cannot_be_together_are_off_and_say_why(service: Installation, guarded: RunningConsole) -> None:
    with browser(guarded) as client:
        start = "/new?source=paths&form=f&template=custom&switches_shown=1"
        merged = client.get(f"{start}&switches=merge_lora&switches=export_gguf&switches=export_lora").text
        assert re.search(r'id="switch-export_lora"[^>]* disabled', merged)
        assert "off: merging puts the adapter into the model" in merged
        assert "-lora.gguf" not in merged.split("Output files")[1], "no file is listed that cannot be"
        bare = client.get(f"{start}&switches=quantize&switches=export_lora").text
        assert re.search(r'id="switch-quantize"[^>]* disabled', bare)
        assert "off: only an exported model is quantized" in bare
        assert not re.search(r'id="switch-export_lora"[^>]* disabled', bare)


def test_presets_choose_types_and_the_place(guarded: RunningConsole) -> None:
    with browser(guarded) as client:
        page = client.get("/new?source=paths&form=f").text
        links = re.findall(r'<a class="chip" href="([^"]+)"[^>]*>([^<]+)</a>', page)
        presets = {title: unescape(link) for link, title in links}
        assert len(presets) == 10
        quality = client.get(presets["Quality first"]).text
        assert set(re.findall(r'id="type-(\w+)"[^>]*checked', quality)) == {"Q5_K_M", "Q8_0"}
        phone = client.get(presets["Phone with 4 GB"]).text
        assert re.findall(r'id="type-(\w+)"[^>]*checked', phone) == ["IQ3_M", "IQ2_S"]
        assert '<option value="mobile" selected>' in phone
