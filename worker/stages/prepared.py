"""What ``prepare`` hands to the stages after it: where the inputs lie on this machine, and what they are called.

Stored with prepare's facts, so that another worker of the same scratch can go on, and never published: the manifest has
:class:`~worker.stages.facts.PublicFacts`. The names of the fields are those under which versions before stored them as
plain facts, so a worker of either version goes on where the other stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api_client.contract.errors import ErrorCode, PackagingError

MARK = "base_dir"
"""Field that every form of it has; facts of a stage without it hold none."""


class GivenMatrix(BaseModel):
    """Files that the request's ``imatrix`` names, fetched."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: Path | None = None
    """The importance matrix itself."""
    calibration: Path | None = None
    """Text to compute one from."""


class GivenText(BaseModel):
    """Files that the request's ``evaluation`` names, fetched."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: Path | None = None
    dataset: Path | None = None
    questions_file: Path | None = None


class RunDataFiles(BaseModel):
    """Data files of the run itself, where its trainer left a note of them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    path: Path | None = None
    """What it was trained on."""
    held_out: Path | None = None
    """What it was evaluated on, where that is another file."""


class Prepared(BaseModel):
    """The inputs of a job, resolved."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base_dir: Path
    """The model to convert: the base model, or a full-weights checkpoint in its place."""
    base_name: str
    """Its name, for output files and metadata."""
    base_named_by: str | None = None
    """File of the run that names it, where the base model that the task names is gone."""
    adapter_dir: Path | None = None
    adapter_base: str | None = None
    """``base_model_name_or_path`` of the adapter: a Hub name, or a path on the machine that trained it."""
    checkpoint_dir: Path | None = None
    checkpoint_name: str | None = None
    tokenizer_dir: Path
    has_projector: bool = False
    """Whether a projector is made beside the text model."""
    draft_head_does: Literal["keep", "graft", "drop"] = "keep"
    """What is done with prediction layers; the public fact ``draft_head`` says what came of it."""
    draft_head_dir: Path | None = None
    """The base model that they are taken from."""
    imatrix: GivenMatrix = Field(default_factory=GivenMatrix)
    evaluation: GivenText = Field(default_factory=GivenText)
    run_data: RunDataFiles = Field(default_factory=RunDataFiles)
    sensitivity: Path | None = None
    """Sensitivity file that the request's ``fit`` names, fetched."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Prepared | None:
        """From the facts as stored; ``None`` where they hold none.

        Raises:
            PackagingError: ``internal_error`` for what no version writes.
        """
        if MARK not in stored:
            return None
        try:
            return cls.model_validate(stored)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise PackagingError(
                ErrorCode.INTERNAL_ERROR,
                f"what prepare stored cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            ) from error

    def to_json(self) -> dict[str, Any]:
        """As stored; files that were not given are left out, as versions before expect it."""
        content = self.model_dump(mode="json")
        content["imatrix"] = self.imatrix.model_dump(mode="json", exclude_none=True)
        content["evaluation"] = self.evaluation.model_dump(mode="json", exclude_none=True)
        content["run_data"] = self.run_data.model_dump(mode="json", exclude_none=True)
        unset: dict[str, Any] = {
            "evaluation": {},
            "run_data": {},
            "base_named_by": None,
            "sensitivity": None,
            "has_projector": False,
            "draft_head_does": "keep",
            "draft_head_dir": None,
        }
        return {key: value for key, value in content.items() if key not in unset or value != unset[key]}

    @property
    def adapter(self) -> Path:
        """Directory of the adapter, of a job that merges or exports one."""
        assert self.adapter_dir is not None, "prepare refuses such a job without an adapter"
        return self.adapter_dir

    @property
    def directories(self) -> dict[str, Path]:
        """Places on this machine that it names, by what they are."""
        places = {
            "base model": self.base_dir,
            "model of the prediction layers": self.draft_head_dir,
            "adapter": self.adapter_dir,
            "checkpoint": self.checkpoint_dir,
            "tokenizer": self.tokenizer_dir,
            "importance matrix": self.imatrix.path,
            "calibration text": self.imatrix.calibration,
            "evaluation text": self.evaluation.text,
            "evaluation data": self.evaluation.dataset,
            "sensitivity file": self.sensitivity,
            "the run's data": self.run_data.path,
            "the run's held-out data": self.run_data.held_out,
            "questions": self.evaluation.questions_file,
            "adapter's base model": Path(named) if (named := self.adapter_base or "").startswith("/") else None,
        }
        return {name: place for name, place in places.items() if place is not None}


PUBLIC_FIELDS = frozenset({"base_name", "checkpoint_name"})
PRIVATE_FIELDS = frozenset(Prepared.model_fields) - PUBLIC_FIELDS
"""Fields that are never taken for public facts, whatever their values look like."""
