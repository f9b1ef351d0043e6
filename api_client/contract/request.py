"""The packaging request: what a producer sends. The main path goes on in ``rules`` (options) and ``plan`` (stages)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict, Unpack

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from api_client.contract.callbacks import check_callback_url
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitOptions, FitType, QuantTypeField, quant_type_of
from api_client.contract.locations import CheckpointRef, Location, is_remote
from api_client.contract.quality import MAX_EXPECTED, MAX_PROMPT, MAX_QUESTIONS, questions_of
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import RecipeOptions
from api_client.contract.request_fields import describe
from api_client.contract.task import TrainingTask
from api_client.contract.templates import DEFAULT_TEMPLATE, BuiltinTemplate, SiteTemplate
from api_client.contract.upload_targets import TargetLocation
from api_client.words.suggestions import did_you_mean, nearest

__all__ = ["ImatrixOptions", "Options", "PackagingRequest", "is_remote", "request_error"]

MAX_NAME_BYTES = 200
"""File systems allow 255 bytes; the quant type, shard number and temporary suffix are added to the name."""


def _number(value: Any) -> Any:
    """Python counts ``True`` among the numbers; as a priority it is a mistake."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Count = Annotated[int, BeforeValidator(_number)]
GgufDtype = Literal["auto", "f32", "f16", "bf16"]
BasePrecision = Literal["stored", "nf4", "nf4_nested"]
LatticeChoice = Literal["off", "auto"]
ProjectorChoice = Literal["auto", "off", "f16", "bf16", "f32", "q8_0"]
DraftHeadChoice = Literal["auto", "keep", "graft", "drop"]
EvaluationLevel = Literal["off", "quick", "full"]


class Options(BaseModel, frozen=True):
    """The four switches; ``None`` leaves the template's value. Only the template ``custom`` lets them be set."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe("options."))

    merge_lora: StrictBool | None = None
    export_gguf: StrictBool | None = None
    quantize: StrictBool | None = None
    export_lora: StrictBool | None = None

    def chosen(self) -> dict[str, bool]:
        """The switches that were set, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ImatrixOptions(BaseModel, frozen=True):
    """Where the importance matrix comes from.

    ``auto`` computes one only when a quant type needs it; ``compute`` always does; ``file`` uses ``path``;
    ``off`` refuses types that need one.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe("imatrix."))

    mode: Literal["auto", "compute", "file", "off"] = "auto"
    path: Location | None = None
    calibration: Location | None = None
    chunks: Count | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, data: Any) -> Any:
        if isinstance(data, str | Path):
            word = str(data)
            return {"mode": word} if word in ("auto", "compute", "off") else {"mode": "file", "path": word}
        if isinstance(data, Mapping) and "mode" not in data:
            data = dict(data)
            if data.get("path") is not None:
                data["mode"] = "file"
            elif data.get("calibration") is not None or data.get("chunks") is not None:
                data["mode"] = "compute"
        return data

    @model_validator(mode="after")
    def _fields_fit_mode(self) -> Self:
        if (self.mode == "file") != (self.path is not None):
            raise ValueError("path goes with mode 'file', and only with it")
        if self.mode != "compute" and (self.calibration is not None or self.chunks is not None):
            raise ValueError("calibration and chunks go with mode 'compute'")
        return self


class EvaluationOptions(BaseModel, frozen=True):
    """How the files are compared with the model they were made from, before anything is published.

    ``quick`` takes as many tokens as fit in a quarter of the job's time so far or a minute, whichever is more; ``full``
    takes the whole text. Bounds that a file does not keep end the job, or are only said, as ``on_fail`` has it.
    A job whose plan was made before ``quick`` became the default has no such stage, and gets none.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe("evaluation."))

    level: EvaluationLevel = "quick"
    text: Location | None = None
    dataset: Location | None = None
    questions: dict[str, str] = Field(default_factory=dict, max_length=MAX_QUESTIONS)
    """Prompts, each with a text that the answer has to hold; empty where none is expected."""
    questions_file: Location | None = None
    max_mean_kld: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    min_retention: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    on_fail: Literal["fail", "warn"] = "fail"

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, data: Any) -> Any:
        return {"level": data} if isinstance(data, str) else data

    @field_validator("questions", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return questions_of(value) if isinstance(value, list | tuple) else value

    @field_validator("questions")
    @classmethod
    def _short_questions(cls, value: dict[str, str]) -> dict[str, str]:
        for prompt, expected in value.items():
            if not prompt.strip() or len(prompt) > MAX_PROMPT or len(expected) > MAX_EXPECTED:
                raise ValueError(
                    f"question {prompt[:40]!r}: a prompt has 1 to {MAX_PROMPT} characters, what is expected at most "
                    f"{MAX_EXPECTED}"
                )
        return value

    @model_validator(mode="after")
    def _fields_fit_level(self) -> Self:
        if self.level == "off" and self.is_asked_for:
            raise ValueError("text, dataset, questions and bounds go with level 'quick' or 'full'")
        if self.text is not None and self.dataset is not None:
            raise ValueError("text and dataset exclude each other")
        return self

    @property
    def is_asked_for(self) -> bool:
        """Whether the request says on what to measure, or what a file has to keep."""
        asked = (self.text, self.dataset, self.max_mean_kld, self.min_retention, self.questions_file)
        return bool(self.questions) or any(value is not None for value in asked)


class RequestValues(TypedDict, total=False):
    """What the constructor of :class:`PackagingRequest` takes: each field's type, and what is turned into it.

    Type checkers go by it; a site's own template is a :class:`~api_client.contract.templates.SiteTemplate` to them.
    """

    template: BuiltinTemplate | SiteTemplate
    options: Options | Mapping[str, bool | None]
    task: TrainingTask | Mapping[str, Any] | None
    base_model: str | Path | None
    checkpoint: str | Path | None
    output_dir: str | Path | None
    model_name: str | None
    quant_types: str | Iterable[QuantType | FitType | str] | None
    fit: FitOptions | Mapping[str, Any]
    recipe: RecipeOptions | Mapping[str, Any]
    base_precision: BasePrecision
    lattice: LatticeChoice
    gguf_dtype: GgufDtype
    projector: ProjectorChoice
    draft_head: DraftHeadChoice
    imatrix: ImatrixOptions | Mapping[str, Any] | str | Path
    evaluation: EvaluationOptions | Mapping[str, Any] | EvaluationLevel
    keep_unquantized: bool
    save_merged: bool
    companions: bool
    split_max_size_bytes: int | None
    overwrite: bool
    upload: bool
    upload_to: str | None
    priority: int
    labels: Mapping[str, str]
    idempotency_key: str | None
    callback_url: str | None


class PackagingRequest(BaseModel, frozen=True):
    """One request to package a model. Frozen; unknown fields are refused with a suggestion.

    ``base_model``, ``checkpoint`` and ``output_dir`` may be local paths, ``s3://bucket/prefix`` or (inputs)
    ``hf://owner/name``. ``checkpoint`` also takes ``latest``, ``best`` or a bare name such as ``checkpoint-900``,
    looked up in the task's output directory. What each field is says the table in ``request_fields``.

    Raises:
        PackagingError: ``unknown_field``, ``quant_type_unknown`` or ``request_invalid``.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra=describe(""))

    template: str = DEFAULT_TEMPLATE
    options: Options = Options()
    task: TrainingTask | None = None
    base_model: Location | None = None
    checkpoint: CheckpointRef | None = None
    output_dir: Location | None = None
    model_name: str | None = Field(default=None, min_length=1, max_length=120)
    quant_types: tuple[QuantTypeField, ...] | None = None
    fit: FitOptions = FitOptions()
    recipe: RecipeOptions = RecipeOptions()
    base_precision: BasePrecision = "stored"
    lattice: LatticeChoice = "off"
    gguf_dtype: GgufDtype = "auto"
    projector: ProjectorChoice = "auto"
    draft_head: DraftHeadChoice = "auto"
    imatrix: ImatrixOptions = ImatrixOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    keep_unquantized: StrictBool = True
    save_merged: StrictBool = False
    companions: StrictBool = False
    split_max_size_bytes: Count | None = Field(default=None, ge=1_000_000)
    overwrite: StrictBool = False
    upload: StrictBool = True
    upload_to: TargetLocation | None = None
    priority: Count = Field(default=5, ge=0, le=9)
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)
    callback_url: str | None = Field(default=None, max_length=2000)

    if TYPE_CHECKING:

        def __init__(self, **values: Unpack[RequestValues]) -> None: ...

    @model_validator(mode="wrap")
    @classmethod
    def _refused_in_our_words(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise request_error(error) from error

    @field_validator("quant_types", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes) else value

    @field_validator("model_name")
    @classmethod
    def _plain_file_name(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.startswith(".") or any(c in "/\\" or not c.isprintable() for c in value):
            raise ValueError("must be a plain file name: no slash, no control character, no leading dot")
        if len(value.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"is too long: {len(value.encode())} bytes, at most {MAX_NAME_BYTES}")
        return value

    @field_validator("output_dir")
    @classmethod
    def _writable_scheme(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("hf://"):
            raise ValueError("cannot be hf://; use a local directory or s3://")
        return value

    @field_validator("callback_url")
    @classmethod
    def _plain_web_address(cls, value: str | None) -> str | None:
        return None if value is None else check_callback_url(value)

    @field_validator("labels")
    @classmethod
    def _short_labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if not key or len(key) > 63 or len(text) > 200 or "=" in key:
                raise ValueError(f"label {key!r}: keys have 1-63 characters and no '=', values at most 200 characters")
            if not (key + text).isprintable():
                raise ValueError(f"label {key!r} holds a control character")
        return value

    @property
    def names_projector(self) -> bool:
        """Whether a projector is asked for by its type, so that a model without one is refused."""
        return self.projector not in ("auto", "off")

    @classmethod
    def from_json(cls, text: str | bytes) -> PackagingRequest:
        """Parse a stored or sent request.

        Raises:
            PackagingError: as the constructor.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise request_error(error) from error


def unquantized_type(request: PackagingRequest) -> QuantType:
    """The unquantized file's type, as far as the request tells: a base model is hardly ever anything but 16-bit."""
    return QuantType.BF16 if request.gguf_dtype == "auto" else QuantType(request.gguf_dtype.upper())


def request_error(error: ValidationError) -> PackagingError:
    """Translate pydantic's first complaint into the project's error, with a suggestion for misspelt names."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_field(first["loc"])
    if first["type"] == "quant_type":
        try:
            quant_type_of(str(first["input"]))
        except PackagingError as refusal:
            return refusal
    reason = str(first["msg"]).removeprefix("Value error, ")
    return PackagingError(
        ErrorCode.REQUEST_INVALID,
        f"{where}: {reason}" if where else reason,
        fields={"field": where, "input": repr(first["input"])[:200]},
    )


def _unknown_field(location: tuple[int | str, ...]) -> PackagingError:
    name = str(location[-1])
    models: dict[str, type[BaseModel]] = {
        "options": Options,
        "task": TrainingTask,
        "imatrix": ImatrixOptions,
        "evaluation": EvaluationOptions,
        "fit": FitOptions,
        "recipe": RecipeOptions,
    }
    owner = models.get(str(location[-2]), PackagingRequest) if len(location) > 1 else PackagingRequest
    suggestion = nearest(name, owner.model_fields, 0.5)
    where = ".".join(str(part) for part in location)
    return PackagingError(
        ErrorCode.UNKNOWN_FIELD,
        f"unknown field {where!r}" + did_you_mean(suggestion, quoted=True),
        remedy=f"Known names: {', '.join(sorted(owner.model_fields))}.",
        fields={"field": where, "suggestion": suggestion},
    )
