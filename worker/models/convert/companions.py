"""Files that go beside the packaged ones on request: a model card for the Hub, a Modelfile for Ollama."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from api_client.contract.quality import FileQuality
from api_client.words.figures import NONE, format_kld, format_share
from worker.models.convert.metadata import ModelMetadata, languages_of, packager

Relation = Literal["quantized", "finetune", "adapter"]


@dataclass(frozen=True)
class CardFile:
    """One packaged file, as a card lists it.

    Attributes:
        name: File name.
        type: Quant type, e.g. ``Q4_K_M``, or the float type.
        size_bytes: Size.
        sha256: Hex digest.
        bits_per_weight: Over the whole file; None where the file is an adapter.
        quality: What was measured of it; None where nothing was.
    """

    name: str
    type: str
    size_bytes: int
    sha256: str
    bits_per_weight: float | None = None
    quality: FileQuality | None = None


def model_card(
    title: str, metadata: ModelMetadata, files: Sequence[CardFile], relation: Relation, projector: str | None = None
) -> str:
    """``README.md`` with the Hub's front matter.

    Args:
        title: Heading.
        metadata: From ``metadata.describe``.
        files: In the order to list them.
        relation: ``quantized`` for the base model as it is, ``finetune`` for a merged model, ``adapter`` for a LoRA
            file.
        projector: File name of the projector among them, which the text models are run with.
    """
    body = "\n".join(_body(title, metadata, files, relation, projector))
    return f"---\n{_front_matter(metadata, relation)}---\n\n{body}\n"


def modelfile(gguf_name: str, stops: Iterable[str], projector: str | None = None) -> str:
    """An Ollama ``Modelfile``: where the model is, and where an answer ends.

    The prompt template is left to Ollama, which recognises it in the GGUF file; there is no ``ADAPTER`` line, which
    current Ollama refuses.

    Args:
        gguf_name: File name, beside which the Modelfile lies.
        stops: Texts of the end tokens; one that the format cannot quote is left out.
        projector: File name of its projector, which Ollama takes as a second source.
    """
    lines = [f"FROM ./{name}" for name in (gguf_name, projector) if name is not None]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if stop and not set(stop) & set('"\n\r')]
    return "\n".join(lines) + "\n"


def _front_matter(metadata: ModelMetadata, relation: Relation) -> str:
    card = metadata.card
    head: dict[str, Any] = {}
    for key in ("license", "license_name", "license_link", "pipeline_tag", "datasets"):
        if key in card:
            head[key] = card[key]
    if languages := languages_of(card):
        head["language"] = list(languages)
    if metadata.base_id is not None:
        head["base_model"] = metadata.base_id
        head["base_model_relation"] = relation
    tags = card.get("tags", [])
    own = ["gguf", "llama.cpp"] + (["lora"] if relation == "adapter" else [])
    head["tags"] = list(dict.fromkeys([*own, *(str(tag) for tag in ([tags] if isinstance(tags, str) else tags))]))
    head["quantized_by"] = packager()
    text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return text


def _body(
    title: str, metadata: ModelMetadata, files: Sequence[CardFile], relation: Relation, projector: str | None
) -> Iterable[str]:
    base = (
        f"[{metadata.base_id}](https://huggingface.co/{metadata.base_id})" if metadata.base_id else metadata.base_name
    )
    made = {
        "quantized": f"GGUF files of {base}.",
        "finetune": f"GGUF files of a fine-tune of {base}, adapter merged.",
        "adapter": f"LoRA adapter for {base}, as GGUF.",
    }
    yield from (f"# {title}", "", made[relation], "")
    measured = any(file.quality is not None and file.quality.overall is not None for file in files)
    heads = ["file", "type", "bits per weight", "size", *(_QUALITY_HEADS if measured else ()), "sha256"]
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    for file in files:
        bits = f"{file.bits_per_weight:.2f}" if file.bits_per_weight is not None else "-"
        cells = [file.name, file.type, bits, f"{file.size_bytes / 1e9:.3f} GB"]
        cells += [*(_quality_cells(file.quality) if measured else ()), f"`{file.sha256}`"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    if relation == "adapter" and files:
        yield f"Apply it to a GGUF of the base model: `llama-cli -m BASE.gguf --lora {files[0].name}`"
    elif files and projector is not None:
        yield f"Run it with pictures or sound: `llama-mtmd-cli -m {files[0].name} --mmproj {projector}`"
    elif files:
        yield f"Run it: `llama-cli -m {files[0].name}`"


_QUALITY_HEADS = ("mean KLD", "99.9 % KLD", "same top token", "training kept")


def _quality_cells(quality: FileQuality | None) -> list[str]:
    """What was measured of a file, in the order of the headings."""
    if quality is None or quality.overall is None:
        return [NONE] * len(_QUALITY_HEADS)
    overall = quality.overall
    shares = (format_share(overall.same_top), format_share(quality.retention))
    return [format_kld(overall.mean_kld), f"{overall.kld_999:.3f}", *shares]
