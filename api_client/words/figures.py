"""Figures of a quality report as people read them. The same in English and Chinese."""

from __future__ import annotations

from api_client.contract.quality import Figure
from api_client.contract.recommend import MeasuredType
from api_client.words.formatting import one_line
from api_client.words.language import Language
from api_client.words.phrases import phrase

NONE = "-"


def format_kld(figure: Figure | None, digits: int = 4) -> str:
    """A divergence in nats with its standard error, ``0.0123 ± 0.0004``."""
    if figure is None:
        return NONE
    error = f" ± {figure.error:.{digits}f}" if figure.error is not None else ""
    return f"{figure.value:.{digits}f}{error}"


def format_share(figure: Figure | None) -> str:
    """A share with its standard error, ``97.8 ± 0.3 %``."""
    if figure is None:
        return NONE
    error = f" ± {100 * figure.error:.1f}" if figure.error is not None else ""
    return f"{100 * figure.value:.1f}{error} %"


def format_measured(language: Language, measured: MeasuredType) -> str:
    """What an earlier report says of a type's file, where it stands for another one's."""
    return phrase(
        language,
        "quality_figures",
        kld=format_kld(measured.mean_kld),
        top=format_share(measured.same_top),
        kept=format_share(measured.retention),
        model=one_line(measured.model),
    )
