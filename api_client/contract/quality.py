"""``quality.json``: how good each file of a job is, and what that was measured on. Data only.

Every figure comes with its standard error, and every mean with the number of tokens behind it, so that means over
several parts or reports can be made again. Divergences are in nats. ``schema_version`` is raised when a field changes
its meaning; readers of a version ignore fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1
FILE_NAME = "quality.json"
REFERENCE = "reference"
"""Name of the model that the files are compared with, among those that answer questions."""
BASE = "base"
"""Name of the base model without its adapter among what is compared."""
REPORT_FACT = "report"
"""Fact of the stage that holds the whole report."""
LINES_FIELD = "quality"
"""Field of the error of a job that its figures ended: the lines of its files."""


MAX_QUESTIONS = 50
MAX_PROMPT = 4000
MAX_EXPECTED = 500
"""Bounds of questions: their number, and characters of a prompt and of what its answer has to hold."""


def questions_of(listed: Sequence[object]) -> dict[str, object]:
    """Questions as a list gives them, by their prompts: texts, or mappings of ``prompt`` and ``expected``.

    Raises:
        ValueError: one is neither, or has a key more.
    """
    by_text: dict[str, object] = {}
    for number, entry in enumerate(listed, 1):
        if isinstance(entry, str):
            by_text[entry] = ""
        elif (
            isinstance(entry, Mapping) and isinstance(entry.get("prompt"), str) and set(entry) <= {"prompt", "expected"}
        ):
            by_text[entry["prompt"]] = entry.get("expected") or ""
        else:
            raise ValueError(f"question {number} is neither a text nor a prompt with what is expected")
    return by_text


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Figure(_Record):
    """A figure and its standard error, both in the figure's own unit; no error where it is not known."""

    value: float
    error: float | None = None


class Divergence(_Record):
    """How far one model is from the reference, over the same tokens."""

    tokens: int
    """Scored tokens."""
    mean_kld: Figure
    """Mean of ``KL(reference || model)``, nats a token."""
    median_kld: float
    kld_99: float
    """99 % of the tokens are below it, nats."""
    kld_999: float
    """99.9 % of the tokens are below it, nats."""
    max_kld: float
    same_top: Figure
    """Share of tokens whose most probable continuation is the reference's, 0 to 1."""
    perplexity_ratio: Figure
    """Perplexity of the model divided by the reference's."""
    rms_probability_change: Figure
    """Root of the mean squared change of the probability of the token that follows, 0 to 1."""


class FileQuality(_Record):
    """One file."""

    name: str = Field(max_length=512)
    size_bytes: int
    bits_per_weight: float
    quant_type: str | None = None
    arithmetic: str = "exact"
    """``llama.cpp``: inputs of products rounded as it rounds them; ``exact``: the weights alone."""
    overall: Divergence | None = None
    """None where the file could not be judged."""
    parts: Mapping[str, Divergence] = Field(default_factory=dict)
    """By part of the text."""
    retention: Figure | None = None
    """Share of the training that is in the file, ``1 - KL(tune || file) / KL(tune || base)``."""
    not_judged: str | None = None
    """Why it could not be judged."""


class Answer(_Record):
    """What one model answered."""

    by: str = Field(max_length=512)
    """:data:`REFERENCE`, or the name of a file."""
    text: str
    expected_found: bool | None = None
    """Whether the expected text is in it; None where none is expected."""


class AskedQuestion(_Record):
    """A question and all answers to it, the reference's first."""

    question: str
    expected: str | None = None
    answers: tuple[Answer, ...] = Field(default=(), max_length=200)


class TextSource(_Record):
    """What the figures were measured on."""

    kind: str
    """``shipped``, ``text``, ``dataset``, or ``run`` where a run's own data was found."""
    name: str
    sha256: str
    samples: int
    """Chunks of a text or samples of a data set that were run."""
    left_out: int = 0
    """Samples that could not be used."""
    left_out_reason: str | None = None
    shortened: int = 0
    """Samples longer than the context, of which the beginning was run."""


class StepWord(StrEnum):
    """The steps from the trained model to the file, in order."""

    MERGE = "merge"
    """Base and adapter, by PEFT, against what was merged here."""
    CONVERSION = "conversion"
    """What was merged against the weights in the unquantized file."""
    TOKENIZER = "tokenizer"
    """Prompts and text cut by llama.cpp, out of the file, against the run's own tokenizer."""
    END_TOKEN = "end_token"
    """The token that ends a trained answer against those at which the file lets llama.cpp stop."""
    TEMPLATE = "template"
    """Prompts rendered by llama.cpp with the file's template against transformers with the run's own."""
    LOGITS = "logits"
    """The whole of it: probabilities of transformers and PEFT against those of the file's weights."""


class StepState(StrEnum):
    """What was found at a step."""

    SAME = "same"
    DIFFERS = "differs"
    NOT_CHECKED = "not_checked"


class OriginStep(_Record):
    """One step from training to file."""

    step: StepWord
    state: StepState
    fact: str
    """How much is the same, the first place that differs, or why it was not checked."""


class QualityReport(_Record):
    """The whole of ``quality.json``."""

    schema_version: int = SCHEMA_VERSION
    reference: str
    """What the files were compared with."""
    architecture: str = Field(default="", max_length=512)
    """GGUF architecture of the files; empty where no file was opened."""
    source: TextSource | None = None
    tokens: int = 0
    """Tokens that were run, those that only give context included."""
    scored: Mapping[str, int] = Field(default_factory=dict)
    """Scored tokens by part of the text."""
    seconds: float = 0.0
    perplexity: Figure | None = None
    """Of the reference."""
    training: Divergence | None = None
    """The base model without the adapter against the tuned one: what the training changed. None without an adapter."""
    training_measurable: bool = False
    """Whether that change is large enough to tell how much of it a file keeps."""
    files: tuple[FileQuality, ...] = Field(default=(), max_length=200)
    questions: tuple[AskedQuestion, ...] = Field(default=(), max_length=200)
    """Questions that were asked of the reference and of every file, with the answers."""
    notes: tuple[str, ...] = ()
    origin: tuple[OriginStep, ...] = ()
    """The unquantized file against the training, step by step; empty where there is no such file."""

    def first_difference(self) -> OriginStep | None:
        """The first step at which the file departs from the training."""
        return next((step for step in self.origin if step.state is StepState.DIFFERS), None)

    def file(self, name: str) -> FileQuality | None:
        """Look a file up by name."""
        return next((file for file in self.files if file.name == name), None)

    @classmethod
    def read(cls, stored: object) -> QualityReport | None:
        """A report out of a job's record; None where it holds none that this version can read."""
        try:
            return cls.model_validate(stored) if isinstance(stored, Mapping) else None
        except ValidationError:
            return None


class QualityLine(_Record):
    """What one line says of a file: its figures without their parts."""

    name: str
    mean_kld: Figure | None = None
    kld_999: float | None = None
    same_top: Figure | None = None
    retention: Figure | None = None
    not_judged: str | None = None

    @classmethod
    def of(cls, file: FileQuality) -> QualityLine:
        """The line of a file."""
        overall = file.overall
        if overall is None:
            return cls(name=file.name, not_judged=file.not_judged)
        return cls(
            name=file.name,
            mean_kld=overall.mean_kld,
            kld_999=overall.kld_999,
            same_top=overall.same_top,
            retention=file.retention,
        )

    @classmethod
    def read_all(cls, stored: object) -> tuple[QualityLine, ...]:
        """Lines out of an error's fields; none where they are not what a stage writes."""
        try:
            return tuple(cls.model_validate(line) for line in stored[:200]) if isinstance(stored, list) else ()
        except ValidationError:
            return ()
