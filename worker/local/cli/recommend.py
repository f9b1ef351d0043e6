"""``recommend``: every quant type's size for a model, and which suit a place to run it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE
from api_client.cli.from_run import location_of, named_base, open_run
from api_client.cli.output import Output
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.connection import open_client
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import is_remote
from api_client.contract.recommend import (
    DEFAULT_CONTEXT,
    QUALITY_WORDS,
    TARGETS,
    Choice,
    MeasuredType,
    Recommendation,
    parse_target,
    recommend,
    shape_of,
)
from api_client.contract.size_curve import SizeCurve
from api_client.contract.tensor_types import type_set
from api_client.runs.kinds import CheckpointKind
from api_client.runs.pick import pick
from api_client.words.figures import format_measured
from api_client.words.formatting import format_size

_SERVICE_TIMEOUT_S = 2.0

RECOMMEND_EXAMPLES = """[bold]Examples[/bold]

  trainpack recommend /runs/42 --target gpu-12g --context 8192

  trainpack recommend merged_model.gguf --target 6GB
"""


def recommend_types(
    output: Output,
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="A model, a run or one of its checkpoints, or an unquantized GGUF file."
        ),
    ] = ".",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            help=f"Where it will run: {', '.join(TARGETS)} or a size such as 6GB.",
            autocompletion=lambda: list(TARGETS),
            metavar="TARGET",
        ),
    ] = "gpu-8g",
    context: Annotated[
        int, typer.Option("--context", help="Context length in tokens.", min=1, max=100_000_000, metavar="N")
    ] = DEFAULT_CONTEXT,
    sensitivity: Annotated[
        Path | None, typer.Option("--sensitivity", help="Sensitivity file of the model.", metavar="FILE")
    ] = None,
    fit_types: Annotated[
        str, typer.Option("--fit-types", help="Tensor types of a fit: k, k+iq, all or a list.", metavar="TYPES")
    ] = "k",
) -> int:
    """Recommend quant types for a model and a place to run it.

    For every type the file's size as it will be, the memory to run it (weights, KV cache, working buffers), and the
    quality to expect. cpu means this machine's memory.

    With a sensitivity file of a GGUF file: the KLD that each size will have, as a stock type and as a fit.
    """
    place = parse_target(target, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    path = _model_of(model, output)
    waiting = output.notes.status(output.text("measuring")) if output.live else contextlib.nullcontext()
    with waiting, needs_extra("worker"):
        from config.roots import Roots
        from worker.models.sizes import predict_file_sizes

        metadata, sizes = predict_file_sizes(path, Roots.anywhere())
    shape = shape_of(metadata)
    recommendation = recommend(shape, sizes, place, context, _measured(shape.architecture))
    drawn = _curve(output, path, sensitivity, fit_types, context) if sensitivity is not None else None
    if output.as_json:
        extra = {} if drawn is None else {"curve": drawn.model_dump(mode="json")}
        output.document(
            {"model": str(path), "architecture": shape.architecture, **recommendation.model_dump(mode="json"), **extra}
        )
    else:
        output.show(*_view(output, recommendation, shape.context_length))
        if drawn is not None:
            output.show(*_curve_view(output, drawn, recommendation))
    return DONE


def _measured(architecture: str) -> tuple[MeasuredType, ...]:
    """Figures of earlier jobs of the service, where there is one: the command goes without."""
    try:
        with open_client(timeout_s=_SERVICE_TIMEOUT_S) as client:
            return client.figures(architecture)
    except PackagingError:
        return ()


def _curve(output: Output, path: Path, sensitivity: Path, fit_types: str, context: int) -> SizeCurve:
    """The curve; some seconds of work."""
    with needs_extra("worker"):
        from config.settings import load_settings
        from worker.models.fit.curve import size_curve
        from worker.models.kernels import use_cache
    allowed = type_set(fit_types)
    use_cache(load_settings().kernels_dir)
    with output.notes.status(output.text("measuring")) if output.live else contextlib.nullcontext():
        return size_curve(path, sensitivity.expanduser().absolute(), allowed, context)


def _curve_view(output: Output, drawn: SizeCurve, recommendation: Recommendation) -> Iterator[RenderableType]:
    """Stock types beside fits of their bytes; then what fits of other sizes come to, and which places hold them."""
    stock = sorted(drawn.stock, key=lambda point: point.size_bytes)
    measured = {choice.quant_type.value: choice.measured for choice in recommendation.choices if choice.measured}
    told = [format_measured(output.language, measured[point.name]) if point.name in measured else "" for point in stock]
    yield fit_table(
        [
            Column(output.text("quant_type"), [point.name for point in stock], ALWAYS),
            Column(output.text("size"), [format_size(point.size_bytes) for point in stock], 8, right=True),
            Column(output.text("predicted_kld"), [f"{point.kld:.5f}" for point in stock], 7, right=True),
            Column(output.text("fit_kld"), [_kld(point.fit_kld) for point in stock], 6, right=True),
            *([Column(output.text("measured_before"), told, 5)] if any(told) else []),
        ],
        output.results.width,
    )
    line = drawn.fit[:: max(1, len(drawn.fit) // 12)]
    yield fit_table(
        [
            Column("fit", [format_size(point.size_bytes) for point in line], ALWAYS, right=True),
            Column(output.text("predicted_kld"), [f"{point.kld:.5f}" for point in line], 7, right=True),
            Column(output.text("fits"), [", ".join(drawn.holding(point.size_bytes)) for point in line], 6),
        ],
        output.results.width,
    )


def _kld(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _model_of(place: str, output: Output) -> Path:
    """The model that a place means: of a run or an adapter the base model that it names.

    Raises:
        PackagingError: ``base_model_required`` where it names none; as ``pick``.
    """
    path = Path(location_of(place))
    if path.is_file() or (path / "config.json").is_file():
        return path
    picked = pick(str(path), open_run)
    base = picked.location if picked.kind is CheckpointKind.FULL else named_base(picked, output)
    if base is None or is_remote(base):
        raise PackagingError(
            ErrorCode.BASE_MODEL_REQUIRED,
            f"{place} names no base model on this machine" + (f"; it names {base}" if base else ""),
            remedy="Give the base model's directory.",
            fields={"path": str(path), "named": base},
        )
    return Path(base)


def _view(output: Output, recommendation: Recommendation, trained_context: int) -> Iterator[RenderableType]:
    choices = recommendation.choices
    yield Text(
        output.text(
            "recommend_head",
            target=recommendation.target.name,
            memory=format_size(recommendation.target.memory_bytes),
            context=f"{recommendation.context:,}",
            cache=format_size(recommendation.cache_bytes),
            buffers=format_size(recommendation.buffer_bytes),
        )
    )
    if 0 < trained_context < recommendation.context:
        yield Text(output.text("context_long", trained=f"{trained_context:,}"), style="yellow")
    yield fit_table(
        [
            Column(output.text("quant_type"), [_name(choice) for choice in choices], ALWAYS),
            Column(output.text("size"), [format_size(choice.file_bytes) for choice in choices], 8, right=True),
            Column(output.text("memory"), [format_size(choice.memory_bytes) for choice in choices], 7, right=True),
            Column(output.text("fits"), [output.text("yes" if c.fits else "no") for c in choices], 6),
            Column(output.text("quality"), [_quality(output, choice) for choice in choices], 5),
            Column(
                output.text("imatrix"), [output.text("needs_matrix") if c.needs_imatrix else "" for c in choices], 4
            ),
        ],
        output.results.width,
    )
    if recommendation.best_fitting is None:
        yield Text(output.text("nothing_fits"), style="yellow")
    else:
        yield Text(output.text("best_fitting", quant_type=recommendation.best_fitting.value))


def _quality(output: Output, choice: Choice) -> str:
    """What is known of a type's files: figures of an earlier job's, else a class."""
    known = choice.measured
    if known is None:
        return output.language.choose(*QUALITY_WORDS[choice.quality])
    return format_measured(output.language, known)


def _name(choice: Choice) -> Text:
    if choice.recommended:
        return Text(f"{choice.quant_type.value} *", style="bold green")
    return Text(choice.quant_type.value, style="" if choice.fits else "dim")
