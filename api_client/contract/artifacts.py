"""Artifacts: the files that stages make, what each is, and whether it is still the file that was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Flag, StrEnum, auto
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api_client.contract.enum_rows import named_member
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.digest import sha256_file

FILE_SIZE_FACT = "file_size_bytes"
"""Of a layout: the size that its file would have."""


class _Ended(Exception):
    """Whoever had a file read wants no answer any more."""


class _Trait(Flag):
    NONE = 0
    GGUF = auto()
    MODEL = auto()
    SMALL = auto()


class ArtifactKind(StrEnum):
    """What an artifact is. Each member is a row: its name in records, its name for people in both languages, traits."""

    title_en: str
    title_zh: str
    is_gguf: bool
    """A model or an adapter as GGUF: ``verify`` checks it and the model card lists it."""
    is_model: bool
    """A GGUF that is a model or a part of one, and no adapter: it may be split, and a Modelfile can name it."""
    is_small: bool
    """Its size is known by nobody beforehand, and hardly counts beside a model's."""

    def __new__(cls, name: str, title_en: str = "", title_zh: str = "", traits: _Trait = _Trait.NONE) -> Self:
        """A row; ``ArtifactKind("gguf")``, which looks one up, passes its name alone."""
        assert title_en, f"the kind {name} has no name for people"
        assert title_zh, f"the kind {name} has no name for people"
        member = named_member(cls, name)
        member.title_en, member.title_zh = title_en, title_zh
        member.is_gguf, member.is_model = _Trait.GGUF in traits, _Trait.MODEL in traits
        member.is_small = _Trait.SMALL in traits
        return member

    OVERLAY = "overlay", "overlay", "更新层"
    GGUF = "gguf", "unquantized", "未量化", _Trait.GGUF | _Trait.MODEL
    LAYOUT = "layout", "layout", "布局"
    QUANTIZED = "quantized", "quantized", "量化", _Trait.GGUF | _Trait.MODEL
    RECIPE = "recipe", "recipe", "配方", _Trait.SMALL
    LORA = "lora", "LoRA", "LoRA", _Trait.GGUF
    IMATRIX = "imatrix", "importance matrix", "重要性矩阵", _Trait.SMALL
    SENSITIVITY = "sensitivity", "sensitivities", "敏感度", _Trait.SMALL
    MERGED_MODEL = "merged_model", "merged model", "合并后的模型"
    QUALITY = "quality", "quality report", "质量报告", _Trait.SMALL
    COMPANION = "companion", "companion", "附属文件", _Trait.SMALL
    MANIFEST = "manifest", "manifest", "清单", _Trait.SMALL
    CHECKSUMS = "checksums", "checksums", "校验和", _Trait.SMALL


class ModelPart(StrEnum):
    """Which part of a model a GGUF file is. A job may have several unquantized ones, and one of them is the model."""

    MODEL = "model"
    PROJECTOR = "projector"
    DRAFT = "draft"

    @property
    def is_quantized(self) -> bool:
        """Whether quant types are made of it; a projector stays as it is."""
        return self is not ModelPart.PROJECTOR


def is_plain_name(name: str) -> bool:
    """Whether a name leads to no other place: a file's, or one in a directory of its own (``tuned-hf/config.json``)."""
    parts = name.split("/")
    return len(parts) <= 2 and all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode("utf-8", "replace")) <= 255
        for part in parts
    )


class Artifact(BaseModel):
    """A file that a stage produced. Read back from Redis it is input: bounded, a plain name, a digest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """File name under which it is published; scratch files keep it too."""
    path: str = Field(max_length=4096)
    """Where it lies now."""
    kind: ArtifactKind
    size_bytes: int = Field(ge=0, lt=2**63)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    quant_type: str | None = None
    part: ModelPart = ModelPart.MODEL
    url: str | None = None
    """``s3://`` address after publishing."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What is known of it: mixture counts, bits per weight, tensor count."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not is_plain_name(name):
            raise ValueError("is no plain file name")
        return name

    @classmethod
    def of(
        cls,
        path: Path,
        kind: ArtifactKind,
        *,
        name: str | None = None,
        sha256: str | None = None,
        quant_type: str | None = None,
        part: ModelPart = ModelPart.MODEL,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """The artifact of a finished file: its size as it is, its digest read where the writer has not made one.

        Args:
            path: The file; complete.
            kind: What it is.
            name: Name to publish it under; the file's own where not given.
            sha256: Hex digest, where it is known; else the file is read in full.
            quant_type: llama.cpp's name of its type, of a quantized file.
            part: Which part of the model it is.
            facts: What is known of it.

        Raises:
            OSError: the file cannot be read.
        """
        return cls(
            name=name or path.name,
            path=str(path),
            kind=kind,
            size_bytes=path.stat().st_size,
            sha256=sha256 if sha256 is not None else sha256_file(path),
            quant_type=quant_type,
            part=part,
            facts=dict(facts or {}),
        )

    @property
    def is_computed(self) -> bool:
        """Whether the job made it; an importance matrix may have been given, and is the user's then."""
        return self.facts.get("computed") is not False

    @property
    def shard_of(self) -> str | None:
        """Name of the whole file that this one is a shard of."""
        whole = self.facts.get("shard_of")
        return whole if isinstance(whole, str) else None

    def is_whole(
        self, path: Path | None = None, *, in_full: bool = True, keep_going: Callable[[], bool] = lambda: True
    ) -> bool:
        """Whether a file is the one that was made.

        Args:
            path: The file; where the artifact lies if not given.
            in_full: Read it and compare digests; else sizes only.
            keep_going: Asked between blocks; a file whose reading was ended early does not count as whole.
        """
        path = Path(self.path) if path is None else path

        def ask(_: int) -> None:
            if not keep_going():
                raise _Ended

        try:
            if not path.is_file() or path.stat().st_size != self.size_bytes:
                return False
            return not in_full or sha256_file(path, before_chunk=ask) == self.sha256
        except (OSError, _Ended):
            return False


def arrived_changed(artifact: Artifact, sha256: str) -> PackagingError:
    """The error for an output whose bytes are not those that were recorded, where it was read again.

    Args:
        artifact: As recorded.
        sha256: Of what arrived.
    """
    return PackagingError(
        ErrorCode.DOWNLOAD_FAILED,
        f"{artifact.name} arrived changed: sha256 is {sha256}, expected {artifact.sha256}",
        fields={"name": artifact.name, "expected": artifact.sha256, "found": sha256},
    )
