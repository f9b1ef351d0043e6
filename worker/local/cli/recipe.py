"""``recipe``: what a fit comes to for a kept GGUF file, without writing a model."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api_client.cli.extras import needs_extra
from api_client.cli.failures import DONE, INTERRUPTED
from api_client.cli.flags import MixtureFlags
from api_client.cli.output import Output
from api_client.cli.requests import build_request
from api_client.contract.fit import FitType
from api_client.words.formatting import format_size
from worker.local.cli.quantize import FitFlags
from worker.local.cli.signals import stop_on_signals
from worker.stop import StopRequested

if TYPE_CHECKING:
    from worker.models.fit.decide import FitDecision

RECIPE_EXAMPLES = """[bold]Examples[/bold]

  trainpack recipe merged_model.gguf -q fit:5.5GiB --sensitivity merged_model.sensitivity.gguf > fit.txt
"""


def recipe(
    output: Output,
    *,
    flags: MixtureFlags,
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="Unquantized GGUF file, or its first shard.")],
    fit: Annotated[
        str, typer.Option("--quant-type", "-q", help="A fit, e.g. fit:5.5GiB or fit:like:Q4_K_M.", metavar="FIT")
    ],
    fitting: FitFlags,
) -> int:
    """Print the recipe of a fit, for llama-quantize's --tensor-type-file; no model is written.

    Chosen by prediction from a sensitivity file; with the model's directory, by measurement, too.
    """
    with needs_extra("worker"):
        from config.settings import load_settings
        from worker.local.fits import decide_kept, decision_document
        from worker.models.kernels import use_cache
        from worker.setting import WorkSetting
    use_cache(load_settings().kernels_dir)
    request, asked = build_request(flags), FitType(fit)
    matrix = fitting.matrix()
    with stop_on_signals() as should_stop, contextlib.suppress(StopRequested):
        setting = WorkSetting(should_stop=should_stop)
        decided = decide_kept(source, [asked], request, model=fitting.model, imatrix=matrix, setting=setting)
        problem, decision = decided.fits[asked]
        if output.as_json:
            output.document(decision_document(asked, problem, decision))
        else:
            output.say(_head(output, decision))
            sys.stdout.write(decision.mixture.recipe_text)
        return DONE
    output.say(output.text("quantize_stopped"))
    return INTERRUPTED


def _head(output: Output, decision: FitDecision) -> str:
    """Size and divergences, beside the recipe on standard error."""
    chosen = decision.chosen
    return output.text(
        "recipe_head",
        size=format_size(decision.mixture.size_bytes),
        type=decision.mixture.file_type.value,
        predicted=f"{decision.mixture.kld:.5f}",
        measured=f"{chosen.kld:.5f}" if chosen is not None else "-",
    )
