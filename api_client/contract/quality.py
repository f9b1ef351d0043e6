"""``quality.json``: how good each file of a job is, and what that was measured on. Data only.

Every figure comes with its standard error, and every mean with the number of tokens behind it, so that means over
several parts or reports can be made again. Divergences are in nats. ``schema_version`` is raised when a field changes
its meaning; readers of a version ignore fields that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
FILE_NAME = "quality.json"
BASE = "base"
"""Name of the base model without its adapter among what is compared."""


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

    name: str
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


class TextSource(_Record):
    """What the figures were measured on."""

    kind: str
    """``shipped``, ``text`` or ``dataset``."""
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
    files: tuple[FileQuality, ...] = ()
    notes: tuple[str, ...] = ()
    origin: tuple[OriginStep, ...] = ()
    """The unquantized file against the training, step by step; empty where there is no such file."""

    def first_difference(self) -> OriginStep | None:
        """The first step at which the file departs from the training."""
        return next((step for step in self.origin if step.state is StepState.DIFFERS), None)

    def file(self, name: str) -> FileQuality | None:
        """Look a file up by name."""
        return next((file for file in self.files if file.name == name), None)
