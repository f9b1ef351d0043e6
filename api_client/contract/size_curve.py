"""Size against predicted KLD for one model: stock types as points, fits as a line, places to run as limits. Data only.

A worker draws it where a job has a fit, and ``recommend`` for a kept file; the console and the command line show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CURVE_FACT = "curve"
"""Fact of the stage that holds the curve of its model."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CurvePoint(_Record):
    """A file that a stock type would make."""

    name: str = Field(max_length=64)
    size_bytes: int = Field(ge=0, lt=2**63)
    kld: float = Field(ge=0, allow_inf_nan=False)
    """Predicted mean KLD, nats."""
    fit_kld: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """That of the fit of the same bytes; None where there is none."""


class FitPoint(_Record):
    """A fit."""

    size_bytes: int = Field(ge=0, lt=2**63)
    kld: float = Field(ge=0, allow_inf_nan=False)
    """Predicted mean KLD, nats."""

    @property
    def fit(self) -> str:
        """What to ask for to get it."""
        return f"fit:{self.size_bytes}B"


class SizeCurve(_Record):
    """The curve of a model."""

    stock: tuple[CurvePoint, ...] = Field(max_length=64)
    """Quant types whose tensors all have prices."""
    fit: tuple[FitPoint, ...] = Field(max_length=128)
    """Fits, the smallest first."""
    targets: Mapping[str, int] = Field(default_factory=dict, max_length=32)
    """Bytes that places to run leave for the file; the machine itself is not among them."""

    def holding(self, size_bytes: int) -> Sequence[str]:
        """The places that hold a file of so many bytes."""
        return [name for name, room in self.targets.items() if size_bytes <= room]

    @classmethod
    def read(cls, stored: object) -> SizeCurve | None:
        """A curve out of a job's record; None where it holds none that this version can read."""
        try:
            return cls.model_validate(stored) if isinstance(stored, Mapping) else None
        except ValidationError:
            return None
