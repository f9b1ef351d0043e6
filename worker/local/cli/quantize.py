"""``quantize``: a GGUF file on this machine, without a job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, INTERRUPTED, JOB_FAILED, error_text
from api_client.cli.flags import FlagGroup, QuantizingFlags, complete_quant_type
from api_client.cli.output import Output
from api_client.cli.render.tables import ALWAYS, Column, fit_table
from api_client.cli.requests import build_request
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import fits_of
from api_client.words.formatting import format_size, one_line
from worker.local.cli.signals import stop_on_signals
from worker.stop import StopRequested

if TYPE_CHECKING:
    from rich.table import Table

    from api_client.contract.fit import AnyQuantType
    from worker.models.quantize.imatrix_data import ImatrixData
    from worker.models.quantize.local import LocalResult
    from worker.models.quantize.result import TypeOutcome
    from worker.setting import WorkProgress

_UNITS = {"M": 10**6, "G": 10**9}

QUANTIZE_EXAMPLES = """[bold]Examples[/bold]

  trainpack quantize merged_model.gguf -q Q4_K_M -q Q8_0 --output /out

  trainpack quantize merged_model.gguf -q IQ2_M --imatrix imatrix.gguf --output /out

  trainpack quantize merged_model.gguf -q IQ2_M --model merged_model-hf --calibration text.txt --output /out

  trainpack quantize merged_model.gguf -q fit:5.5GiB --sensitivity merged_model.sensitivity.gguf --output /out
"""


@dataclass(frozen=True)
class FitFlags(FlagGroup):
    """What a fit is decided from, beside a sensitivity file."""

    imatrix: Annotated[
        list[Path] | None,
        typer.Option(
            "--imatrix", help="Importance matrix, GGUF or legacy form; several are merged into one.", metavar="FILE"
        ),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="Directory of the model, to compute a matrix with, and to compute and measure a fit.",
            metavar="DIR",
        ),
    ] = None

    def matrix(self) -> ImatrixData | None:
        """The one matrix, of all that were given.

        Raises:
            PackagingError: as ``load_merged``.
        """
        from worker.models.imatrix.merge import load_merged

        return load_merged([path.expanduser().absolute() for path in self.imatrix]) if self.imatrix else None


@dataclass(frozen=True)
class ComputingFlags(FitFlags):
    """The same, and what a matrix is computed from where none is given."""

    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="Text to compute the importance matrix from, with --model; the one that comes with trainpack.",
            metavar="FILE",
        ),
    ] = None
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            help="How many chunks of the calibration text to use; all if left out.",
            min=1,
            metavar="N",
        ),
    ] = None


@dataclass(frozen=True)
class WritingFlags(FlagGroup):
    """How files are written."""

    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", metavar="", help="Take a file that is quantized already.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace files that are there.")] = False
    split_max_size: Annotated[
        str | None,
        typer.Option("--split-max-size", help="Split larger files, e.g. 500M or 2G (decimal).", metavar="SIZE"),
    ] = None
    threads: Annotated[
        int | None, typer.Option("--threads", help="Threads; all cores by default.", min=1, max=1024, metavar="N")
    ] = None


def quantize(
    output: Output,
    *,
    flags: QuantizingFlags,
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="Unquantized GGUF file, or its first shard.")],
    quant_type: Annotated[
        list[str],
        typer.Option(
            "--quant-type",
            "-q",
            help="Quant type, e.g. Q4_K_M; may be repeated or separated by commas.",
            autocompletion=complete_quant_type,
            metavar="TYPE",
        ),
    ],
    output_dir: Annotated[Path, typer.Option("--output", "-o", help="Output directory.", metavar="DIR")],
    fitting: ComputingFlags,
    writing: WritingFlags,
) -> int:
    """Quantize a GGUF file on this machine, to all types in one pass.

    Byte for byte what llama-quantize makes. Ctrl-C keeps what is done; the same command goes on from there.

    A type that needs an importance matrix gets one computed with the model's directory, kept beside the files.

    A fit needs the model's directory or a sensitivity file; its recipe is written beside the file.
    """
    with needs_extra("worker"):
        from config.settings import load_settings
        from worker.local.fits import decide_kept, write_recipes
        from worker.local.matrix import MatrixSource, computed_matrix
        from worker.models.kernels import use_cache
        from worker.models.mixture.recipe import Recipe, Recipes
        from worker.models.quantize.local import LocalOptions, parse_quant_types, quantize_local
        from worker.setting import WorkSetting
    split_max_bytes = size_bytes(writing.split_max_size) if writing.split_max_size is not None else None
    use_cache(load_settings().kernels_dir)
    names = [name for given in quant_type for name in given.split(",") if name.strip()]
    matrix = fitting.matrix()
    request = build_request(flags)
    kinds = parse_quant_types(names)
    fits = fits_of(tuple(kinds))
    computing = MatrixSource(fitting.model, fitting.calibration, fitting.chunks)
    computing.check(given=matrix is not None)
    with stop_on_signals() as should_stop, _bar(output) as report, contextlib.suppress(StopRequested):
        setting = WorkSetting(threads=writing.threads, report=report, should_stop=should_stop)
        if matrix is None and computing.is_wanted(kinds):
            matrix = computed_matrix(
                computing, source.absolute(), output_dir.expanduser().absolute(), writing.overwrite, setting
            )
        decided = (
            decide_kept(source, fits, request, model=fitting.model, imatrix=matrix, setting=setting) if fits else None
        )
        made = {fit: decision.mixture.made for fit, (_, decision) in decided.fits.items()} if decided else {}
        matrix = decided.imatrix if decided else matrix
        recipes = Recipes(Recipe.of(request.recipe), made, hits_lattice=request.lattice == "auto")
        result = quantize_local(
            source.expanduser().absolute(),
            names,
            output_dir.expanduser().absolute(),
            options=LocalOptions(matrix, writing.allow_requantize, writing.overwrite, split_max_bytes, recipes),
            setting=setting,
        )
        if decided is not None:
            write_recipes(decided, result)
        return _report(output, result)
    output.say(output.text("quantize_stopped"))
    return INTERRUPTED


def size_bytes(text: str) -> int:
    """Bytes of ``500M`` or ``2G``; decimal, as llama-gguf-split counts.

    Raises:
        PackagingError: ``request_invalid``.
    """
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS or not number.isdecimal() or int(number) == 0:
        raise PackagingError(
            ErrorCode.REQUEST_INVALID,
            f"--split-max-size {text!r} is no size",
            remedy="Give a whole number with M or G, e.g. 500M or 2G.",
        )
    return int(number) * _UNITS[unit]


def _report(output: Output, result: LocalResult) -> int:
    """Show what was made; a pass that made nothing is an error."""
    failed = result.failed
    if failed and not result.files:
        raise next(iter(failed.values()))
    if output.as_json:
        errors = [{"quant_type": kind.value, "error": error.to_dict()} for kind, error in failed.items()]
        output.document({"files": [_document(kind, result) for kind in result.files], "failed": errors})
    else:
        output.show(_table(output, result))
        for kind in result.files:
            _say_exactness(output, result.result.outcomes[kind])
        for kind, error in failed.items():
            output.notes.print(kind.value, error_text(output, error))
    return JOB_FAILED if failed else DONE


def _document(kind: AnyQuantType, result: LocalResult) -> dict[str, Any]:
    """What is told of one type; where it was split, there is no digest of the whole, which is gone."""
    from worker.models.quantize.lattice import exactness_facts

    outcome, files = result.result.outcomes[kind], result.files[kind]
    single = len(files) == 1
    return {
        "quant_type": kind.value,
        "paths": [str(file.path) for file in files],
        "size_bytes": sum(file.size_bytes for file in files),
        "sha256": files[0].sha256 if single else None,
        "shards": []
        if single
        else [{"path": str(file.path), "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files],
        "bits_per_weight": outcome.bits_per_weight,
        "mixture_counts": dict(outcome.mixture_counts),
        **({} if outcome.exactness is None else {"lattice": exactness_facts(outcome.exactness)}),
    }


def _say_exactness(output: Output, outcome: TypeOutcome) -> None:
    from worker.models.quantize.lattice import exactness_facts

    if outcome.exactness is not None:
        facts = exactness_facts(outcome.exactness)
        counts = {key: f"{facts[key]:,}" for key in ("exact", "weights", "tensors", "stock")}
        output.say(output.text("exact_weights", file=outcome.path.name, **counts))


def _table(output: Output, result: LocalResult) -> Table:
    """A row per file."""
    rows = [(file, result.result.outcomes[kind]) for kind, files in result.files.items() for file in files]
    return fit_table(
        [
            Column(output.text("artifact"), [str(file.path) for file, _ in rows], ALWAYS),
            Column(output.text("size"), [format_size(file.size_bytes) for file, _ in rows], 8, right=True),
            Column(
                output.text("bits_per_weight"), [f"{whole.bits_per_weight:.2f}" for _, whole in rows], 6, right=True
            ),
            Column(output.text("sha256"), [file.sha256[:12] for file, _ in rows], 5),
        ],
        output.results.width,
    )


@contextmanager
def _bar(output: Output) -> Iterator[Callable[[WorkProgress], None]]:
    """One bar over all types together, counted in bytes written."""
    from worker.models.quantize.result import QuantizeProgress

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.notes, disable=not output.live) as progress:
        task = progress.add_task("", total=None)

        def report(state: WorkProgress) -> None:
            if not isinstance(state, QuantizeProgress):  # a fit is being decided
                progress.update(task, description=one_line(state.detail), completed=state.done, total=state.total)
                return
            progress.update(
                task,
                description=one_line(state.detail),
                completed=sum(state.written_bytes.values()),
                total=sum(state.total_bytes.values()),
            )

        yield report
