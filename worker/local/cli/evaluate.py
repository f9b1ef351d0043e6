"""``evaluate``: how good GGUF files are, on this machine, without a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, INTERRUPTED
from api_client.cli.flags import FlagGroup
from api_client.cli.output import Output
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.words.figures import NONE, format_kld, format_share
from api_client.words.formatting import format_size
from worker.local.cli.signals import stop_on_signals
from worker.stop import StopRequested

if TYPE_CHECKING:
    from rich.table import Table

    from api_client.contract.quality import FileQuality, QualityReport
    from worker.models.evaluate.local import Compared
    from worker.setting import WorkProgress

EVALUATE_EXAMPLES = """[bold]Examples[/bold]

  trainpack evaluate package/merged_model-*.gguf --reference /models/base --checkpoint run/checkpoint-900

  trainpack evaluate their-Q4_K_M.gguf ours-Q4_K_M.gguf --reference /models/base --text notes.txt

  trainpack evaluate their-tune-Q4_K_M.gguf --reference their-tune-F16.gguf --base /models/base --dataset chats.jsonl
"""


@dataclass(frozen=True)
class ComparedFlags(FlagGroup):
    """What files are compared with, and on what."""

    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="What the files are compared with: the model's directory, or a GGUF file with --base.",
            metavar="DIR|FILE.gguf",
        ),
    ] = None
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", help="Directory of the base model that was tuned; gives the training kept.", metavar="DIR"
        ),
    ] = None
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="The adapter that was merged.", metavar="DIR")
    ] = None
    text: Annotated[Path | None, typer.Option("--text", help="Text to measure on.", metavar="FILE")] = None
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", help="Training or evaluation data to measure on: JSONL, JSON.", metavar="FILE"),
    ] = None
    weights_only: Annotated[
        bool,
        typer.Option(
            "--weights-only", metavar="", help="Compute in float32, without the rounding of inputs that llama.cpp does."
        ),
    ] = False

    def compared(self) -> Compared:
        """The same for the engine.

        Raises:
            PackagingError: ``request_invalid`` for two texts.
        """
        from worker.models.evaluate.arithmetic import Arithmetic
        from worker.models.evaluate.local import Compared

        if self.text is not None and self.dataset is not None:
            raise PackagingError(ErrorCode.REQUEST_INVALID, "--text and --dataset exclude each other")
        return Compared(
            *_model_and_file(self.reference, self.base),
            checkpoint=_absolute(self.checkpoint) if self.checkpoint is not None else None,
            text=_absolute(self.text) if self.text is not None else None,
            dataset=_absolute(self.dataset) if self.dataset is not None else None,
            arithmetic=Arithmetic.EXACT if self.weights_only else Arithmetic.LLAMA_CPP,
        )


def evaluate(
    output: Output,
    *,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.gguf...", help="GGUF files, or first shards of split ones.")
    ],
    against: ComparedFlags,
    seconds: Annotated[
        float, typer.Option("--seconds", help="Time to spend, about.", min=1, max=1e6, metavar="S")
    ] = 120.0,
    full: Annotated[bool, typer.Option("--full", metavar="", help="Measure on all of the text.")] = False,
) -> int:
    """Measure how far GGUF files are from the model they were made from.

    Mean Kullback-Leibler divergence with its error, the tail of it, how often the most probable token is the same;
    with an adapter also how much of the training each file keeps. Nothing is written.
    """
    with needs_extra("worker"):
        from config.settings import load_settings
        from worker.models.evaluate.local import evaluate_local
        from worker.models.evaluate.run import Budget
        from worker.models.kernels import use_cache
    use_cache(load_settings().kernels_dir)
    compared = against.compared()
    with stop_on_signals() as should_stop, _bar(output) as report:
        try:
            quality = evaluate_local(
                [_absolute(path) for path in files],
                compared,
                Budget(None if full else seconds),
                report=report,
                should_stop=should_stop,
            )
        except StopRequested:
            return INTERRUPTED
    if output.as_json:
        output.document(quality.model_dump(mode="json"))
    else:
        show_quality(output, quality)
    return DONE


def show_quality(output: Output, quality: QualityReport) -> None:
    """The table of a report, and what it was measured on."""
    output.show(quality_table(output, quality))
    parts = ", ".join(f"{part} {count}" for part, count in quality.scored.items())
    output.notes.print(
        output.text(
            "quality_measured",
            reference=quality.reference,
            source=quality.source.name if quality.source else "-",
            parts=parts,
        ),
        markup=False,
    )
    if quality.training is not None and not quality.training_measurable:
        output.notes.print(output.text("quality_nothing_learnt"), markup=False)
    for file in quality.files:
        if file.not_judged is not None:
            output.notes.print(f"{file.name}: {file.not_judged}", markup=False)


def quality_table(output: Output, quality: QualityReport) -> Table:
    """A row per file."""
    files = quality.files
    columns = [
        Column(output.text("artifact"), [file.name for file in files], ALWAYS),
        Column(output.text("size"), [format_size(file.size_bytes) for file in files], 6, right=True),
        Column(output.text("bits_per_weight"), [f"{file.bits_per_weight:.2f}" for file in files], 4, right=True),
        Column(output.text("mean_kld"), [_overall(file, lambda d: format_kld(d.mean_kld)) for file in files], 9,
               right=True),
        Column(output.text("kld_999"), [_overall(file, lambda d: f"{d.kld_999:.3f}") for file in files], 5, right=True),
        Column(output.text("same_top"), [_overall(file, lambda d: format_share(d.same_top)) for file in files], 8,
               right=True),
    ]  # fmt: skip
    if quality.training is not None:
        kept = [format_share(file.retention) for file in files]
        columns.append(Column(output.text("retention"), kept, 7, right=True))
    return fit_table(columns, output.results.width)


def _overall(file: FileQuality, told: Callable[[Any], str]) -> str:
    return told(file.overall) if file.overall is not None else NONE


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _model_and_file(reference: Path | None, base: Path | None) -> tuple[Path, Path | None]:
    """The model's directory, and the file that is the reference in its place."""
    whole = reference or base
    if whole is None:
        raise PackagingError(ErrorCode.REQUEST_INVALID, "--reference is missing: what the files are compared with")
    if reference is None or base is None:
        if whole.suffix == ".gguf":
            message = f"{whole.name} is a file: give the directory of its base model with --base, too"
            raise PackagingError(ErrorCode.REQUEST_INVALID, message)
        return _absolute(whole), None
    if reference.suffix == ".gguf":
        return _absolute(base), _absolute(reference)
    if _absolute(reference) != _absolute(base):
        message = "--base goes with a --reference that is a GGUF file; for an adapter give --base and --checkpoint"
        raise PackagingError(ErrorCode.REQUEST_INVALID, message)
    return _absolute(base), None


@contextmanager
def _bar(output: Output) -> Iterator[Callable[[WorkProgress], None]]:
    """A bar in tokens."""
    columns: tuple[Any, ...] = (
        TextColumn("{task.completed:,.0f} / {task.total:,.0f} tokens", markup=False),
        BarColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.notes, disable=not output.live) as progress:
        task = progress.add_task("", total=1)
        yield lambda state: progress.update(task, completed=state.done, total=state.total)
