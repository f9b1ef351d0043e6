"""“Package again with these settings”: the form of a job, sent as it stands, asks for the same job again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from api_client import Job, PackagingRequest
from tests.any_request import requests
from tests.html_form import controls
from tests.integration.console.running import RunningConsole
from tests.integration.harness import Installation
from tests.tiny import tiny_base, tiny_checkpoint

pytestmark = pytest.mark.integration

RUN: dict[str, Any] = {"base_model": "/models/base", "checkpoint": "/runs/1/checkpoint-9", "output_dir": "/out"}
TASK = {"task_id": "t-1", "status": "stopped", "kind": "pretrain", "base_model": "/models/of-task", "output_dir": "/r"}
CUSTOM = RUN | {"template": "custom"}
BASE_ONLY = {"template": "quantize_base", "base_model": "/models/base", "output_dir": "/out"}


@pytest.fixture
def browser(idle: RunningConsole) -> Iterator[httpx.Client]:
    with idle.client(None) as client:
        client.headers.update({"Accept": "text/html", "Accept-Language": "en"})
        yield client


def again(browser: httpx.Client, service: Installation, job: Job) -> Job:
    """Open the form of a job and press its button, as a browser without script does."""
    page = browser.get(f"/new?like={job.id}", follow_redirects=True)
    assert page.status_code == 200
    answer = browser.post("/new", data=controls(page.text, "make"))
    assert answer.status_code == 303, answer.text
    return service.client.get(answer.headers["location"].removeprefix("/jobs/"))


def differences(one: Job, other: Job) -> dict[str, tuple[Any, Any]]:
    """Fields in which two jobs were asked for otherwise, the key apart: the form has one of its own."""
    left, right = (job.request.model_dump(exclude={"idempotency_key"}) for job in (one, other))
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(RUN | {"save_merged": True}, id="save_merged"),
        pytest.param(RUN | {"companions": True}, id="companions"),
        pytest.param(RUN | {"split_max_size_bytes": 2_000_000_123}, id="split_max_size_bytes"),
        pytest.param(RUN | {"imatrix": {"calibration": "/c.txt", "chunks": 40}}, id="imatrix"),
        pytest.param(RUN | {"imatrix": {"mode": "compute"}}, id="imatrix-computed"),
        pytest.param(RUN | {"imatrix": "/m.gguf"}, id="imatrix-file"),
        pytest.param(RUN | {"callback_url": "https://example.org/hook?token=a&b=%20"}, id="callback_url"),
        pytest.param(RUN | {"quant_types": ["Q8_0", "Q4_K_M"]}, id="types-in-their-order"),
        pytest.param(RUN | {"quant_types": ["Q4_K_M"]}, id="types-that-are-the-template's"),
        pytest.param(RUN, id="types-left-to-the-template"),
        pytest.param(RUN | {"labels": {"run": "42", " a ": " x=y ", "empty": "", '"q"': '"'}}, id="labels"),
        pytest.param(RUN | {"model_name": ' "my" <model> ', "gguf_dtype": "f16"}, id="names"),
        pytest.param(RUN | {"base_model": "/a b/ü\n<i> ", "output_dir": '/"o"'}, id="paths"),
        pytest.param(
            RUN | {"overwrite": True, "upload": False, "keep_unquantized": False, "priority": 0}, id="switched-around"
        ),
        pytest.param(CUSTOM | {"options": {"merge_lora": False}}, id="one-switch"),
        pytest.param(CUSTOM | {"options": {"merge_lora": False, "export_lora": True}}, id="two-switches"),
        pytest.param(CUSTOM | {"options": {"merge_lora": True, "quantize": False}}, id="switch-that-is-the-default"),
        pytest.param(BASE_ONLY | {"checkpoint": "/runs/1/checkpoint-full"}, id="full-weights"),
        pytest.param({"task": TASK, "checkpoint": "latest"}, id="task"),
        pytest.param(RUN | {"task": TASK}, id="task-and-paths-of-its-own"),
        pytest.param(BASE_ONLY | {"task": TASK | {"finetuning": "full"}, "checkpoint": "best"}, id="task-full-weights"),
    ],
)
def test_the_stored_request_is_the_same(browser: httpx.Client, service: Installation, values: dict[str, Any]) -> None:
    first = service.client.submit(PackagingRequest(**values))
    second = again(browser, service, first)
    assert second.id != first.id
    assert differences(second, first) == {}
    assert second.options == first.options


def test_the_checkpoint_stays_where_a_worker_lists_the_run(browser: httpx.Client, service: Installation) -> None:
    """The page chooses for a person who said nothing; what was said it leaves alone."""
    base = tiny_base(service.directory / "base")
    for step in (10, 20):
        tiny_checkpoint(base, service.directory / "run", step=step)
    elsewhere = tiny_checkpoint(base, service.directory / "elsewhere", step=10)
    service.start_worker()
    task = TASK | {"base_model": str(base), "output_dir": str(service.directory / "run")}
    for reference in ("latest", "best", "checkpoint-10", str(elsewhere)):
        first = service.submit(task=task, base_model=str(base), checkpoint=reference)
        page = browser.get(f"/new?like={first.id}", follow_redirects=True).text
        assert ("checkpoint-20" in page) == (reference != str(elsewhere)), "the worker has listed the run"
        assert differences(again(browser, service, first), first) == {}, reference


def test_full_weights_of_a_run_can_be_packaged(browser: httpx.Client, service: Installation) -> None:
    form = {"source": "run", "run": "/runs/1", "base_model": "/models/base", "template": "quantize_base", "form": "f"}
    answer = browser.post("/new", data=form | {"weights": "best", "checkpoint": "checkpoint-of-an-adapter"})
    assert answer.status_code == 303, answer.text
    [job] = service.client.list()
    assert job.request.checkpoint == "/runs/1/best"


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request_=requests())
def test_any_request_is_the_same(browser: httpx.Client, service: Installation, request_: PackagingRequest) -> None:
    first = service.client.submit(request_.model_copy(update={"idempotency_key": None}))
    second = again(browser, service, first)
    assert second.id != first.id
    assert differences(second, first) == {}
    assert (second.options, second.plan) == (first.options, first.plan)
