"""The pages in a real browser: by keyboard, by two people at once, in two languages, with hostile text in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from api_client.console.admission import SESSION_COOKIE
from api_client.console.identity import Principal
from api_client.console.roles import Role
from api_client.contract.job import Job
from tests.integration.console.running import SECRETS, RunningConsole, running_console
from tests.integration.harness import Installation
from tests.integration.pages.conftest import BOUND_MS, Windows

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = pytest.mark.integration

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"
CONTROLS = "\x1b[31mred\x07 \u202egnp.exe <b>bold</b>"
OUTLINE = "getComputedStyle(document.activeElement.closest('.choice') ?? document.activeElement).outlineStyle"
SHOWN = "\\x1b[31mred\\x07 \\x202egnp.exe <b>bold</b>"
PATHS = "/new?source=paths&base_model=/models/base&checkpoint=/runs/1/checkpoint-9&output_dir=/out/{name}&form={name}"


@pytest.fixture
def expect() -> Any:
    from playwright.sync_api import expect

    expect.set_options(timeout=BOUND_MS)
    return expect


class Held:
    """Requests of a page that wait until they are let go."""

    def __init__(self, page: Page, pattern: str) -> None:
        self._held: list[Route] | None = []
        page.route(pattern, self._hold)

    def _hold(self, route: Route) -> None:
        if self._held is None:
            route.continue_()
        else:
            self._held.append(route)

    def let_go(self) -> None:
        held, self._held = self._held or [], None
        for route in held:
            route.continue_()


def log_line(service: Installation, job: Job, message: str) -> None:
    """Add a line to a job's log, as a worker does."""
    entry = {
        "time": int(datetime.now(UTC).timestamp() * 1000),
        "job_id": job.id,
        "stage": "merge",
        "attempt": 1,
        "level": "warning",
        "kind": "Merge LoRA",
        "message": message,
        "fields": {},
    }
    service.redis.xadd(service.keys.events(job.id), {"event": json.dumps(entry)})


def test_foreign_text_is_only_text(idle: RunningConsole, windows: Windows, service: Installation, expect: Any) -> None:
    job = service.submit(labels={"note": HTML})
    log_line(service, job, CONTROLS)
    page = windows.open(idle.url)
    page.goto("/jobs?label=note=" + HTML.replace("=", "%3D"))
    page.goto("/jobs")
    expect(page.get_by_role("row", name=job.id)).to_contain_text(f"note={HTML}")
    page.get_by_role("link", name=job.id).click()
    expect(page.locator("#facts")).to_contain_text(f"note={HTML}")
    said = page.locator(".log .said", has_text="gnp.exe")
    expect(said).to_have_text([f"warning{SHOWN}"])
    expect(page.locator(".live")).to_have_text("Live")
    log_line(service, job, CONTROLS)  # this one comes as an event and is drawn by the script
    expect(said).to_have_text([f"warning{SHOWN}"] * 2)


def test_a_job_is_started_by_keyboard_alone(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    page.goto("/jobs")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to content")
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_id("main")

    page.goto("/new")

    def tab_to(identity: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == identity:
                outline = page.evaluate(OUTLINE)
                assert outline != "none", f"{identity} does not show that it has the focus"
                return
        raise AssertionError(f"{identity} cannot be reached with the Tab key")

    page.locator("#source-run").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#source-paths")).to_be_checked()
    expect(page.get_by_label("Run's output directory")).to_have_count(0)
    tab_to("base_model")
    page.keyboard.type("/models/base")
    page.keyboard.press("Enter")  # looks up, and starts nothing
    expect(page.get_by_role("complementary")).to_contain_text("/models/base")
    tab_to("template-merge_quantize")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#quant_types")).to_contain_text("Quantize is off")
    expect(page.locator("#template-merge")).to_be_focused()
    tab_to("checkpoint")
    page.keyboard.type("/runs/1/checkpoint-9")
    tab_to("output_dir")
    page.keyboard.type("/out/keyboard")
    tab_to("start")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#facts")).to_contain_text("Merge without quantizing")
    expect(page.locator("#job-state")).to_contain_text("queued")


def test_what_is_typed_before_the_script_runs_is_looked_up(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    held = Held(page, "**/static/form.js")
    with page.expect_request("**/static/form.js"):
        page.goto("/new?source=paths", wait_until="commit")
    page.get_by_label("Base model path").fill("/models/early")
    page.get_by_role("radio", name="Merge without quantizing").check()
    held.let_go()
    expect(page.get_by_role("complementary")).to_contain_text("/models/early")
    expect(page.locator("#quant_types")).to_contain_text("Quantize is off")


def test_a_page_as_the_server_sent_it_is_not_fetched_again(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.resource_type) if "/new?" in request.url else None)
    page.goto(PATHS.format(name="once"))
    page.get_by_role("checkbox", name="Q8_0").check()
    expect(page.get_by_role("complementary")).to_contain_text("merged_model-Q8_0.gguf")
    assert asked == ["document", "fetch"]


def test_the_page_changes_around_whoever_is_in_a_field(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    page.goto("/new")
    held = Held(page, "**/new?*source=paths*")
    with page.expect_request("**/new?*source=paths*"):
        page.get_by_role("radio", name="Plain paths").check()
    field = page.get_by_label("Base model path")
    field.focus()
    held.let_go()
    expect(page.get_by_label("Run's output directory")).to_have_count(0)
    expect(field).to_be_focused()
    page.get_by_label("Checkpoint path").fill("/runs/1/checkpoint-9")
    expect(page.get_by_role("complementary")).to_contain_text("/runs/1/checkpoint-9")


def test_a_change_that_is_taken_back_leaves_nothing_waiting(
    idle: RunningConsole, windows: Windows, expect: Any
) -> None:
    page = windows.open(idle.url)
    page.goto(PATHS.format(name="back"))
    form, summary = page.locator("#make"), page.get_by_role("complementary")
    page.get_by_role("checkbox", name="Q6_K").check()
    expect(summary).to_contain_text("merged_model-Q6_K.gguf")
    held = Held(page, "**/new?*Q8_0*")
    with page.expect_request("**/new?*Q8_0*"):
        page.get_by_role("checkbox", name="Q8_0").check()
    expect(form).to_have_attribute("aria-busy", "true")
    page.get_by_role("checkbox", name="Q8_0").uncheck()
    expect(form).not_to_have_attribute("aria-busy", "true")
    held.let_go()
    expect(summary).not_to_contain_text("merged_model-Q8_0.gguf")


def test_a_look_up_that_fails_is_told_and_made_again(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    page.goto(PATHS.format(name="fails"))
    page.route("**/new?*", lambda route: route.fulfill(status=503))
    page.get_by_role("checkbox", name="Q8_0").check()
    expect(page.get_by_text("The console did not answer")).to_be_visible()
    page.unroute("**/new?*")
    page.get_by_role("button", name="Look it up").click()
    expect(page.get_by_role("complementary")).to_contain_text("merged_model-Q8_0.gguf")
    expect(page.get_by_text("The console did not answer")).not_to_be_visible()


def test_the_same_form_from_two_browsers_makes_one_job(
    idle: RunningConsole, windows: Windows, service: Installation, expect: Any
) -> None:
    address = PATHS.format(name="twice")
    first, second = windows.open(idle.url), windows.open(idle.url, java_script_enabled=False)
    first.goto(address)
    second.goto(address)
    first.get_by_role("button", name="Start packaging").dblclick()
    first.wait_for_url("**/jobs/*")
    second.get_by_role("button", name="Start packaging").click()
    second.wait_for_url("**/jobs/*")
    assert first.url == second.url
    assert len(service.client.list()) == 1

    second.goto(address)
    second.get_by_label("Output directory").fill("/out/other")
    second.get_by_role("button", name="Start packaging").click()
    expect(second.get_by_role("alert")).to_contain_text("This form has already started job")
    expect(second.get_by_label("Output directory")).to_have_value("/out/other")
    second.get_by_role("button", name="Start packaging").click()
    second.wait_for_url("**/jobs/*")
    assert len(service.client.list()) == 2


def test_templates_lock_and_custom_unlocks(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url)
    page.goto(PATHS.format(name="custom"))
    switches = page.locator("#switches")
    expect(switches.get_by_text("locked")).to_have_count(4)
    expect(switches.get_by_role("checkbox")).to_have_count(0)
    page.get_by_role("radio", name="Custom").check()
    expect(page.get_by_role("checkbox", name="Export LoRA as GGUF")).to_be_disabled()
    page.get_by_role("checkbox", name="Merge LoRA weights").uncheck()
    page.get_by_role("checkbox", name="Export LoRA as GGUF").check()
    page.get_by_role("button", name="Start packaging").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator("#stages")).to_contain_text("Export LoRA")


def test_languages(idle: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(idle.url, locale="zh-CN")
    page.goto("/jobs?state=failed")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page.get_by_role("heading", name="打包作业")).to_be_visible()
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", name="Packaging jobs")).to_be_visible()
    expect(page.get_by_label("State", exact=True)).to_have_value("failed")
    page.goto("/new?template=quantize_base&source=paths")
    expect(page.get_by_role("button", name="Start packaging")).to_be_visible()
    page.get_by_role("link", name="中文").click()
    expect(page.get_by_role("button", name="开始打包")).to_be_visible()
    expect(page.get_by_role("radio", name="仅量化基础模型")).to_be_checked()
    expect(page.locator("#switches")).to_contain_text("合并 LoRA 权重到基础模型")


def test_no_page_is_wider_than_a_phone(idle: RunningConsole, windows: Windows, service: Installation) -> None:
    job = service.submit(labels={"run": "x" * 200}, output_dir="/out/" + "long-directory-name/" * 12)
    for language in ("en", "zh"):
        page = windows.open(idle.url, viewport={"width": 360, "height": 740}, color_scheme="dark")
        for path in (
            "/jobs",
            f"/jobs/{job.id}",
            f"/new?like={job.id}",
            "/new?source=task",
            "/workers",
            "/queues",
            "/x",
        ):
            page.goto(path + ("&" if "?" in path else "?") + f"lang={language}")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 360, f"{path} is {width} px wide"


def test_a_session_that_ends_loses_nothing(guarded: RunningConsole, windows: Windows, expect: Any) -> None:
    page = windows.open(guarded.url)
    page.goto("/new?source=paths")
    expect(page.get_by_role("heading", name="Log in to go on")).to_be_visible()
    page.get_by_label("Token").fill("not-a-token-at-all")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("unauthenticated")
    page.get_by_label("Token").fill(SECRETS["submit"])
    page.get_by_role("button", name="Log in").click()

    page.get_by_label("Base model path").fill("/models/kept")
    expect(page.get_by_role("complementary")).to_contain_text("/models/kept")
    page.wait_for_url("**base_model=*")
    assert "csrf" not in page.url
    past = datetime.now(UTC) - timedelta(days=30)
    person = Principal("the-submit", Role.SUBMIT, "token")
    ended = guarded.app.state.admission.identities.start_session(person, past)
    page.context.add_cookies([{"name": SESSION_COOKIE, "value": f'"{ended}"', "url": guarded.url}])
    page.get_by_role("button", name="Start packaging").click()
    expect(page.get_by_role("heading", name="Your session has ended")).to_be_visible()
    page.get_by_label("Token").fill(SECRETS["submit"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_label("Base model path")).to_have_value("/models/kept")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


@pytest.fixture(scope="module")
def _patient(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A service whose worker keeps its leases while the browser has the machine to itself."""
    installation = Installation(valkey, tmp_path_factory.mktemp("patient"))
    installation.start_worker(slots=2, lease_s=60)
    yield installation
    installation.close()


@pytest.fixture
def working(_patient: Installation, tmp_path: Path) -> Iterator[Installation]:
    """That service, with a directory for this test."""
    view = Installation(_patient.url, tmp_path, prefix=_patient.prefix, workers=_patient.workers)
    yield view
    view.client.close()
    view.redis.close()


@pytest.fixture
def busy(working: Installation) -> Iterator[RunningConsole]:
    """A console on a service whose worker runs small stages."""
    with running_console(working.url, working.prefix, tokens=()) as console:
        yield console


def test_a_running_job_is_cancelled(busy: RunningConsole, windows: Windows, working: Installation, expect: Any) -> None:
    job = working.submit(labels={"convert": "hold"})
    working.held("convert")
    page = windows.open(busy.url)
    page.goto("/jobs?state=running")
    expect(page.get_by_role("row", name=job.id)).to_contain_text("Convert to GGUF")
    page.get_by_role("link", name=job.id).click()
    expect(page.locator("#stage-convert")).to_contain_text("running")
    expect(page.get_by_role("button", name="Yes, cancel it")).not_to_be_visible()
    page.locator("#cancel > summary").press("Enter")
    page.get_by_role("button", name="Yes, cancel it").click()
    expect(page.locator("#job-state")).to_contain_text(re.compile("is cancelled"))
    expect(page.locator("#stage-convert")).to_contain_text("cancelled")
    expect(page.locator("#replay")).to_be_visible()

    page.goto("/workers")
    expect(page.locator("#list")).to_contain_text("0 of 2")
    page.goto("/queues")
    expect(page.get_by_role("row", name="packaging.heavy")).to_be_visible()


@pytest.fixture
def cancelled(working: Installation) -> Job:
    """A job that was cancelled while it converted. Its scratch is gone: attempt 2 of convert has merge run again."""
    job = working.submit(labels={"convert": "hold"})
    working.held("convert")
    working.client.cancel(job.id)
    return working.wait(job)


def test_a_job_replayed_from_elsewhere_is_followed_again(
    busy: RunningConsole, windows: Windows, working: Installation, cancelled: Job, expect: Any
) -> None:
    page = windows.open(busy.url)
    page.goto(f"/jobs/{cancelled.id}")
    expect(page.locator(".live")).to_have_text("Ended")
    page.evaluate("window.sameDocument = true")
    working.client.replay(cancelled.id, "convert")
    working.held("convert", 3)
    expect(page.locator("#job-state")).to_contain_text("running")
    expect(page.locator("#stage-convert")).to_contain_text("attempt 3")
    expect(page.locator(".live")).to_have_text("Live")
    working.let_go("convert")
    expect(page.locator("#job-state")).to_contain_text("succeeded")
    expect(page.locator(".live")).to_have_text("Ended")
    assert page.evaluate("window.sameDocument") is True


def test_a_page_that_refuses_goes_on_showing_the_job(
    busy: RunningConsole, windows: Windows, working: Installation, cancelled: Job, expect: Any
) -> None:
    page = windows.open(busy.url)
    # so that it does not notice the replay by itself
    page.route("**/events?*", lambda route: route.fulfill(json={"events": []}))
    page.goto(f"/jobs/{cancelled.id}")
    working.client.replay(cancelled.id, "convert")
    working.held("convert", 3)
    page.locator("#replay > summary").click()
    page.get_by_role("button", name="Replay now").click()
    expect(page.get_by_role("alert")).to_contain_text("job_running")
    working.let_go("convert")
    expect(page.locator("#job-state")).to_contain_text("succeeded")
    expect(page.get_by_role("alert")).to_contain_text("job_running")
    page.get_by_role("link", name="中文").click()
    expect(page.locator("#job-state")).to_contain_text("成功")
