"""Commands that need the worker, from ``package`` to ``doctor``; found by entry point.

Light to import: what a command needs is loaded when it runs.
"""

from __future__ import annotations

import typer

from api_client.cli.app import PANEL_CHOICES, PANEL_RUN, PANEL_SERVICE
from api_client.cli.command import add_command
from worker.local.cli.ask import ASK_EXAMPLES, ask
from worker.local.cli.clean import CLEAN_EXAMPLES, clean
from worker.local.cli.evaluate import EVALUATE_EXAMPLES, evaluate
from worker.local.cli.local import PACKAGE_EXAMPLES, demo, package, up
from worker.local.cli.machine import doctor, run_worker
from worker.local.cli.quantize import QUANTIZE_EXAMPLES, quantize
from worker.local.cli.recipe import RECIPE_EXAMPLES, recipe
from worker.local.cli.recommend import RECOMMEND_EXAMPLES, recommend_types


def register(app: typer.Typer) -> None:
    """Add the commands; the entry point of the group ``trainpack.commands``."""
    add_command(app, package, panel=PANEL_RUN, examples=PACKAGE_EXAMPLES)
    add_command(app, ask, panel=PANEL_RUN, examples=ASK_EXAMPLES)
    add_command(app, demo, panel=PANEL_RUN)
    add_command(app, quantize, panel=PANEL_RUN, examples=QUANTIZE_EXAMPLES)
    add_command(app, recipe, panel=PANEL_RUN, examples=RECIPE_EXAMPLES)
    add_command(app, evaluate, panel=PANEL_RUN, examples=EVALUATE_EXAMPLES)
    add_command(app, recommend_types, name="recommend", panel=PANEL_CHOICES, examples=RECOMMEND_EXAMPLES)
    add_command(app, up, panel=PANEL_SERVICE)
    add_command(app, run_worker, name="worker", panel=PANEL_SERVICE)
    add_command(app, doctor, panel=PANEL_SERVICE)
    add_command(app, clean, panel=PANEL_SERVICE, examples=CLEAN_EXAMPLES)
