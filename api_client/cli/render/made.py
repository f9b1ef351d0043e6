"""The end of a job: every file by its whole path, how large and how good it is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from api_client.cli.output import Output
from api_client.contract.artifacts import Artifact, ArtifactKind, ModelPart
from api_client.contract.job import Job
from api_client.contract.outputs import MODELFILE, RECORDS
from api_client.contract.quality import QualityLine
from api_client.contract.stages import StageName
from api_client.contract.upload_targets import TargetKind, UploadTarget
from api_client.words.figures import format_kld, format_share
from api_client.words.formatting import format_size, one_line

_RUN_FIRST = (ArtifactKind.QUANTIZED, ArtifactKind.GGUF)


def made_lines(output: Output, job: Job, *, ready: bool) -> Iterator[Text]:
    """A line for each file that was made for use, then the commands that use them.

    Args:
        output: Language.
        job: A job with outputs.
        ready: Whether to say the commands; of several jobs they would only be in the way.
    """
    files = [output_file for output_file in job.outputs if output_file.kind not in RECORDS]
    width = max((len(_place(file)) for file in files), default=0)
    measured = {line.name: line for line in job.quality}
    for file in files:
        told = _how_good(output, measured.get(file.shard_of or file.name))
        yield Text(f"{one_line(_place(file)):<{width}}  {format_size(file.size_bytes):>9}{told}")
    if ready:
        yield from _commands(output, job, files)
        yield from _from_anywhere(output, job)


def _how_good(output: Output, line: QualityLine | None) -> str:
    """How far a file is from the model, and how much of the training it keeps; nothing where it was not measured."""
    if line is None or line.mean_kld is None:
        return ""
    kept = f", {output.text('retention')} {format_share(line.retention)}" if line.retention is not None else ""
    return f"  {output.text('mean_kld')} {format_kld(line.mean_kld)}{kept}"


def _place(artifact: Artifact) -> str:
    """Where it is: the path where it lies on a disk, else its address in object storage."""
    return artifact.path if Path(artifact.path).exists() or artifact.url is None else artifact.url


def _commands(output: Output, job: Job, files: list[Artifact]) -> Iterator[Text]:
    here = [file for file in files if file.part is ModelPart.MODEL and Path(file.path).is_file()]
    model = next((file for kind in _RUN_FIRST for file in here if file.kind is kind), None)
    adapter = next((file for file in here if file.kind is ArtifactKind.LORA), None)
    if model is None and adapter is None:
        if files:
            yield _command(output, "made_elsewhere", "trainpack", "outputs", job.id, "--download", ".")
        return
    asked = model or adapter
    assert asked is not None
    yield _command(output, "made_ask", "trainpack", "ask", asked.path, "Hello")
    if model is not None:
        yield _command(output, "made_run", "llama-cli", "-m", model.path)
    elif adapter is not None:
        yield _command(output, "made_run", "llama-cli", "-m", "BASE.gguf", "--lora", adapter.path)
    modelfile = next((file for file in files if file.name == MODELFILE.recipe and Path(file.path).is_file()), None)
    if modelfile is not None:
        name = (
            job.request.model_name or Path(job.request.checkpoint or job.request.base_model or "model").name
        ).lower()
        yield _command(output, "made_ollama", "ollama", "create", name, "-f", modelfile.path)


def _from_anywhere(output: Output, job: Job) -> Iterator[Text]:
    """What fetches and runs the first quantized file, or the model, of the place that the request named."""
    facts = next((stage.facts for stage in job.stages if stage.name is StageName.PUBLISH), {})
    if job.request.upload_to is None or facts.get("upload_to") != job.request.upload_to:
        return
    target = UploadTarget.parse(job.request.upload_to)
    models = [file for kind in _RUN_FIRST for file in job.outputs if file.kind is kind]
    if target.kind is TargetKind.HUB and models:
        quant = f":{models[0].quant_type}" if models[0].quant_type else ""
        yield _command(output, "made_anywhere", "llama-cli", "-hf", target.name + quant)
    tags = list(facts.get("images", {}))
    if target.kind is TargetKind.REGISTRY and models and tags:
        kind = models[0].quant_type or ""
        tag = next((tag for tag in tags if kind and tag.endswith(kind)), tags[0])
        yield _command(output, "made_anywhere", "docker", "model", "run", f"{target.host}/{target.name}:{tag}")


def _command(output: Output, key: str, *words: str) -> Text:
    return Text.assemble((f"{output.text(key)}: ", "dim"), shlex.join(words))
