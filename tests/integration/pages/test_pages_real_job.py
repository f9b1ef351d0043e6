"""A person packages a tiny model in the browser, on the real service: Valkey, SeaweedFS, a worker, real stages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_client.client import PackagingClient
from api_client.contract.request import PackagingRequest
from api_client.ledger.questions import Questions
from tests.integration.console.running import RunningConsole, running_console
from tests.integration.pages.conftest import BOUND_MS, Windows
from tests.tiny import tiny_base, tiny_checkpoint
from worker.local.embedded.stack import Stack

pytestmark = pytest.mark.integration
WAIT_S = 120


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("home"), workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints and one that was cut short."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny_base(directory / "base")
    for step in (10, 20):
        tiny_checkpoint(base, directory / "run", step=step)
    (directory / "run" / "checkpoint-30").mkdir()
    return directory / "run"


@pytest.fixture(scope="module")
def console(stack: Stack) -> Iterator[RunningConsole]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        with PackagingClient(stack.info.redis_url) as client:
            Questions(client, WAIT_S).space("/")  # answered once the worker has loaded torch
        with running_console(stack.info.redis_url, "trainpack", tokens=()) as running:
            yield running


def test_a_run_becomes_files(console: RunningConsole, windows: Windows, run: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=BOUND_MS)
    page = windows.open(console.url, accept_downloads=True)
    page.goto("/jobs")
    page.get_by_role("main").get_by_role("link", name="New job").first.click()

    page.get_by_label("Run's output directory").fill(str(run))
    best = page.get_by_role("radio", name="checkpoint-20")
    expect(best).to_be_checked()
    expect(page.locator(".choice", has=best)).to_contain_text("best by eval_loss")
    expect(page.locator(".choice", has=best)).to_contain_text("latest")
    expect(page.get_by_role("radio", name="checkpoint-30")).to_be_disabled()
    expect(page.get_by_label("Base model path")).to_have_value(str(run.parent / "base"))
    page.get_by_role("radio", name="checkpoint-10").check()
    page.get_by_role("checkbox", name="Q8_0").check()
    summary = page.get_by_role("complementary")
    expect(summary).to_contain_text(re.compile(r"merged_model-Q8_0\.gguf\s*≈ \d+\.\d KB"))
    expect(summary).to_contain_text("checkpoint-10")
    page.get_by_label("Where it will run").select_option("gpu-12g")
    expect(page.get_by_text("recommended", exact=True)).to_have_count(1)
    expect(page.locator("tr", has=page.locator("#type-Q5_K_M"))).to_contain_text("recommended")
    output = run.parent / "files of 训练 1"
    page.get_by_label("Output directory", exact=True).fill(str(output))
    expect(page.locator("#space")).to_contain_text(" free of ")
    expect(summary).to_contain_text("files of 训练 1")
    expect(summary).to_contain_text("No job has succeeded on this host yet")
    page.get_by_role("button", name="Start packaging").click()

    page.wait_for_url("**/jobs/*")
    log = page.get_by_role("log")
    page.evaluate("window.sameDocument = true")
    for kind in ("Merge LoRA", "GGUF conversion", "Quantization", "Command success"):
        expect(log.locator(".kind", has_text=kind).first).to_be_attached()
    expect(page.locator("#job-state")).to_contain_text("succeeded")
    expect(page).to_have_title(re.compile("succeeded"))
    expect(log.locator("> ol > li").first).to_be_attached()
    assert page.evaluate("window.sameDocument") is True, "the log moved without loading the page again"
    expect(page.locator(".line.succeeded")).to_have_count(7)
    quality = page.get_by_role("region", name="Quality")
    expect(quality.locator("svg .point")).to_have_count(3)  # drawn by the server, and told in the table too
    expect(quality.get_by_role("row", name="merged_model-Q8_0.gguf").first).to_contain_text(re.compile(r"0\.\d+ ± 0"))
    quality.get_by_text("Mean KLD by part of the text").click()
    expect(quality.get_by_role("columnheader", name="mathematics")).to_be_visible()

    page.get_by_role("checkbox", name="Quantization").uncheck()
    expect(log.locator("li:visible .kind", has_text="Quantization")).to_have_count(0)
    expect(log.locator("li:visible .kind", has_text="GGUF conversion").first).to_be_visible()

    row = page.locator("#outputs").get_by_role("row", name="merged_model-Q8_0.gguf")
    with page.expect_download() as started:
        row.get_by_role("link", name="Download").click()
    data = Path(started.value.path()).read_bytes()
    assert data[:4] == b"GGUF"
    assert data == (output / "merged_model-Q8_0.gguf").read_bytes()
    expect(row).to_contain_text(hashlib.sha256(data).hexdigest())


def test_a_failed_job_is_replayed(console: RunningConsole, windows: Windows, stack: Stack, run: Path) -> None:
    from playwright.sync_api import expect

    expect.set_options(timeout=BOUND_MS)
    missing, base = run.parent / "moved" / "base", run.parent / "base"
    with PackagingClient(stack.info.redis_url) as client:
        request = PackagingRequest(
            template="quantize_base", base_model=missing, output_dir=run.parent / "again", upload=False
        )
        job = client.wait(client.submit(request).id, WAIT_S)
    page = windows.open(console.url)
    page.goto("/jobs?state=failed")
    page.get_by_role("link", name=job.id).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The job failed in stage Prepare")
    expect(alert).to_contain_text("base_model_not_found")
    expect(alert).to_contain_text("Remedy")

    missing.parent.mkdir()
    base.rename(missing)
    try:
        page.locator("#replay > summary").click()
        page.get_by_role("button", name="Replay now").click()
        expect(page.locator("#job-state")).to_contain_text("succeeded")
    finally:
        missing.rename(base)
    expect(page.locator("#stage-prepare")).to_contain_text("attempt 2")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator("#outputs").get_by_role("cell", name="base-Q4_K_M.gguf")).to_be_visible()
