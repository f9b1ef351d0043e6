"""Look at trainpack as others' tools do: pyright on a producer's code, and clients generated from the OpenAPI document.

``python scripts/consumers.py`` (``make consumers``). The tools are installed beside the environment, into
``build/consumers``, at the versions below: they are wanted here alone, and bring a Node.js of their own. The TypeScript
part needs ``npm``. Exit code 1: a line that must be refused is not, or the other way round, or a client does not work.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.running import ROOT, running_stack

WORK = ROOT / "build" / "consumers"
PYTHON_TOOLS = ("basedpyright==1.40.2", "openapi-python-client==0.29.1")
NODE_TOOLS = ("openapi-typescript@7.13.0", "openapi-fetch@0.15.0", "typescript@5.9.3")

PYTHON_USER = """
import sys
from generated import Client
from generated.api.jobs import get_job, list_jobs, submit_job
from generated.models import Job, JobPage, JobState, PackagingRequest

client = Client(base_url=sys.argv[1])
request = PackagingRequest(base_model="/models/none", output_dir="/tmp/none", template="quantize_base")
job = submit_job.sync(client=client, body=request)
assert isinstance(job, Job), job
assert job.request.base_model == "/models/none"
again = get_job.sync(job.id, client=client)
assert isinstance(again, Job) and again.state in list(JobState), again
page = list_jobs.sync(client=client, limit=5)
assert isinstance(page, JobPage) and job.id in [one.id for one in page.jobs], page
refused = submit_job.sync(client=client, body=PackagingRequest(template="quantise"))
assert refused.error.code == "unknown_template", refused
print("python client:", job.id)
"""
TYPESCRIPT_USER = """
import createClient from "openapi-fetch";
import type { paths, components } from "./generated";

const client = createClient<paths>({ baseUrl: process.argv[2] });
const body: components["schemas"]["PackagingRequest"] = {
  base_model: "/models/none", output_dir: "/tmp/none", template: "quantize_base",
} as components["schemas"]["PackagingRequest"];
const { data: job, error } = await client.POST("/api/v1/jobs", { body });
if (!job) throw new Error(JSON.stringify(error));
const state: "queued" | "running" | "succeeded" | "failed" | "cancelled" = job.state;
const { data: page } = await client.GET("/api/v1/jobs", { params: { query: { limit: 5 } } });
if (!page?.jobs.some((one) => one.id === job.id)) throw new Error("not listed");
const path = { job_id: "20200101-000000-aaaaaa" };
const { data: none } = await client.GET("/api/v1/jobs/{job_id}", { params: { path } });
if (none) throw new Error("there is no such job");
console.log("typescript client:", job.id, state);
"""
TYPESCRIPT_WRONG = """
import createClient from "openapi-fetch";
import type { paths } from "./generated";

const client = createClient<paths>({ baseUrl: "" });
const { data: job } = await client.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id: "x" } } });
await client.GET("/api/v1/jobz");  // wrong
await client.GET("/api/v1/jobs/{job_id}");  // wrong
await client.GET("/api/v1/jobs", { params: { query: { limit: "five" } } });  // wrong
const state: "lost" | undefined = job?.state;  // wrong
job?.identifier;  // wrong
"""


def main() -> int:
    """Run all of it; what is wrong is told, and counted."""
    WORK.mkdir(parents=True, exist_ok=True)
    tools = install_python_tools()
    wrong = check_user_code(tools)
    document = WORK / "openapi.json"
    document.write_text(openapi_document())
    with (
        tempfile.TemporaryDirectory(prefix="trainpack-consumers-") as home,
        running_stack(Path(home), "--no-worker") as (url, _),
    ):
        wrong += python_client(tools, document, url)
        if shutil.which("npm"):
            wrong += typescript_client(document, url)
        else:
            print("no npm here: the TypeScript client is left out")
    return 1 if wrong else 0


def install_python_tools() -> Path:
    """A virtual environment of the tools' own; its directory of programs."""
    programs = WORK / "tools" / "bin"
    if not programs.is_dir():
        run(sys.executable, "-m", "venv", WORK / "tools")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON_TOOLS)
    return programs


def check_user_code(tools: Path) -> int:
    """Pyright refuses the lines of the typing test that are marked wrong, and no other."""
    from tests.unit.client.test_typing import CODE

    place = WORK / "user"
    place.mkdir(exist_ok=True)
    (place / "user.py").write_text(CODE)
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    told = run(
        *(tools / "basedpyright", "--outputjson", "--project", place, "--pythonpath", sys.executable), may_fail=True
    )
    refused = {entry["range"]["start"]["line"] + 1 for entry in json.loads(told)["generalDiagnostics"]}
    return compare("pyright", refused, marked(CODE))


def python_client(tools: Path, document: Path, url: str) -> int:
    """Generate a client in Python, without a warning, and use it."""
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = (tools / "openapi-python-client", "generate", "--path", document, "--meta", "none", "--overwrite")
    told = run(*command, "--output-path", WORK / "generated", environment=path)
    left_out = re.findall(r"^(?:WARNING|Unable).*", told, flags=re.MULTILINE)
    (WORK / "use_it.py").write_text(PYTHON_USER)
    print(run(tools / "python", WORK / "use_it.py", url).strip())
    for line in left_out:
        print("openapi-python-client:", line)
    return len(left_out)


def typescript_client(document: Path, url: str) -> int:
    """Generate types for TypeScript, check code that uses them, and run it."""
    place = WORK / "typescript"
    place.mkdir(exist_ok=True)
    (place / "package.json").write_text('{"type": "module", "private": true}')
    (place / "use_it.ts").write_text(TYPESCRIPT_USER)
    (place / "wrong.ts").write_text(TYPESCRIPT_WRONG)
    (place / "ambient.d.ts").write_text("declare const process: { argv: string[] };")
    run("npm", "install", "--silent", "--no-fund", "--no-audit", *NODE_TOOLS, at=place)
    programs = place / "node_modules" / ".bin"
    run(programs / "openapi-typescript", document, "--output", place / "generated.d.ts", at=place)
    options = (
        "--strict",
        "--skipLibCheck",
        "--target",
        "es2022",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
    )
    run(programs / "tsc", *options, "use_it.ts", "ambient.d.ts", at=place)
    print(run("node", "use_it.js", url, at=place).strip())
    told = run(programs / "tsc", *options, "--noEmit", "wrong.ts", at=place, may_fail=True)
    refused = {int(line) for line in re.findall(r"^wrong\.ts\((\d+),", told, flags=re.MULTILINE)}
    return compare("typescript", refused, marked(TYPESCRIPT_WRONG))


def marked(code: str) -> set[int]:
    """Numbers of the lines that must be refused."""
    return {number for number, line in enumerate(code.splitlines(), 1) if line.endswith(("# wrong", "// wrong"))}


def compare(what: str, refused: set[int], wrong: set[int]) -> int:
    """Say how far a checker agrees; the number of lines on which it does not."""
    print(f"{what}: refuses {len(refused & wrong)} of {len(wrong)} wrong lines, {len(refused - wrong)} right ones")
    return len(refused ^ wrong)


def openapi_document() -> str:
    """As the console serves it."""
    from api_client.console.app import create_app
    from api_client.console.settings import load_console_settings

    return json.dumps(create_app(load_console_settings({})).openapi())


def run(*command: object, at: Path = WORK, environment: dict[str, str] | None = None, may_fail: bool = False) -> str:
    """Run a program; what it wrote. One that fails where it may not ends the whole."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=at,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=None if may_fail else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0 and not may_fail:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
