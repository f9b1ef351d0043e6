"""Make the READMEs' pictures anew: the demo's job in a terminal, and its page in the console.

``python scripts/pictures.py`` (``make pictures``). Takes the job that ``make demo`` left in the stack below
``TRAINPACK_HOME``, else runs the demo; photographs with Chromium (``TRAINPACK_CHROMIUM``, else ``/usr/bin/chromium``).
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.running import ROOT, TRAINPACK, running_stack

PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 100
CHROMIUM = os.environ.get("TRAINPACK_CHROMIUM") or "/usr/bin/chromium"
PAGE = {"width": 1200, "height": 860}
QUESTION = "What is the capital city of the island of Velmora?"
"""The demo's own."""
PAGES = {"console.png": "en-US", "console.zh-CN.png": "zh-CN"}


def main() -> None:
    """Have a job of the demo, then draw what the terminal says of it and photograph its page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    home = Path(os.environ.get("TRAINPACK_HOME") or ROOT / ".cache")
    with running_stack(home) as (url, environment):
        job = demo_job(environment) or demo_job(environment, after_running_it=True)
        if job is None:
            raise SystemExit("the demo left no job that succeeded")
        asked = (("ask", job, QUESTION, "--base"), ("outputs", job))
        shown = [(arguments, shown_by(environment, *arguments)) for arguments in asked]
        (PICTURES / "terminal.svg").write_text(as_svg(shown, job), "utf-8")
        photograph(f"{url}/jobs/{job}")


def demo_job(environment: dict[str, str], *, after_running_it: bool = False) -> str | None:
    """Id of the newest job of the demo that succeeded, where the stack still knows one."""
    if after_running_it:
        subprocess.run([*TRAINPACK, "demo"], check=True, env=environment, cwd=ROOT)
    listed = subprocess.run(
        [*TRAINPACK, "list", "--state", "succeeded", "--search", "demo/package", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=ROOT,
    )
    return next((job["id"] for job in json.loads(listed.stdout)["jobs"]), None)


def shown_by(environment: dict[str, str], *arguments: str) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    colours = {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    command = subprocess.Popen(
        [*TRAINPACK, *arguments], stdout=theirs, stderr=subprocess.DEVNULL, env=environment | colours, cwd=ROOT
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # the terminal's way to say that nobody writes any more
        pass
    if command.wait() != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {command.returncode}")
    return b"".join(parts).decode().replace("\r\n", "\n").rstrip()


def as_svg(shown: Iterable[tuple[tuple[str, ...], str]], job: str) -> str:
    """A terminal's window with these commands. The font is the reader's own: a picture fetches nothing."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for arguments, text in shown:
        typed = shlex.join("last" if argument == job else argument for argument in arguments)
        console.print(Text(f"$ trainpack {typed}", style="bold"), soft_wrap=True)
        console.print(Text.from_ansi(text))
        console.print()
    svg = console.export_svg(title="trainpack")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def photograph(address: str) -> None:
    """The page in both languages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name, locale in PAGES.items():
            page = browser.new_context(locale=locale, viewport=PAGE).new_page()
            page.goto(address)
            page.locator("main").wait_for()
            page.screenshot(path=PICTURES / name)
        browser.close()


if __name__ == "__main__":
    main()
