"""What the new job page offers: registered tasks, runs that workers see, presets; each is an address. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from api_client.console.pages.form import NewJobForm
from api_client.contract.presets import SCENARIOS
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import TARGETS
from api_client.contract.task import PACKAGEABLE, RegisteredTask
from api_client.runs.checkpoints import CheckpointList
from api_client.runs.listing import FoundRun
from api_client.words.language import Language


@dataclass(frozen=True)
class RunOffer:
    """A run, and the address of the form with it."""

    run: FoundRun
    address: str
    chosen: bool


@dataclass(frozen=True)
class TaskOffer:
    """A registered task, the address of the form with it, and whether it can be packaged yet."""

    known: RegisteredTask
    address: str
    ready: bool
    score: float | None


@dataclass(frozen=True)
class PresetOffer:
    """Quant types that are chosen together, and the address of the form with them."""

    key: str
    title: str
    quant_types: Sequence[QuantType]
    address: str


def offer_runs(runs: Sequence[FoundRun], form: NewJobForm) -> list[RunOffer]:
    """Runs, each with a form that is as this one but for the run and what follows from it."""
    start = NewJobForm()
    open_form = replace(form, checkpoint=start.checkpoint, base_model=form.own_base_model, base_filled="")
    return [RunOffer(run, replace(open_form, run=run.path).address(), run.path == form.run) for run in runs]


def offer_tasks(tasks: Sequence[RegisteredTask]) -> list[TaskOffer]:
    """Registered tasks, each with a form for it; the score is the best checkpoint's."""
    return [
        TaskOffer(
            known=known,
            address=replace(NewJobForm.of_task(known.task), checkpoint=known.best or "").address(),
            ready=known.task.status in PACKAGEABLE,
            score=known.scores[known.best][known.deciding] if known.best and known.deciding else None,
        )
        for known in tasks
    ]


def offer_presets(form: NewJobForm, language: Language) -> list[PresetOffer]:
    """Types by scenario, then by platform; a platform is also chosen as the place to run."""
    return [*_presets(form, language)]


def _presets(form: NewJobForm, language: Language) -> Iterator[PresetOffer]:
    def address(types: Sequence[QuantType], target: str) -> str:
        names = tuple(quant_type.value for quant_type in types)
        return replace(form, quant_types=names, fits="", types_shown="1", target=target).address()

    for key, preset in SCENARIOS.items():
        title = language.choose(*preset.title)
        yield PresetOffer(key, title, preset.quant_types, address(preset.quant_types, form.target))
    for name, (_, types) in TARGETS.items():
        yield PresetOffer(f"target.{name}", "", types, address(types, name))


def with_own_scores(listing: CheckpointList, known: RegisteredTask | None) -> CheckpointList:
    """A run's checkpoints with the scores that its orchestrator registered in the trainer's place."""
    if known is None or not known.scores:
        return listing
    checkpoints = tuple(
        checkpoint.model_copy(update={"scores": dict(known.scores[checkpoint.name])})
        if checkpoint.name in known.scores
        else checkpoint
        for checkpoint in listing.checkpoints
    )
    best = known.best if known.best and listing.find(known.best) else listing.best
    changed = {"checkpoints": checkpoints, "best": best, "metric": known.deciding or listing.metric}
    return listing.model_copy(update=changed)
