"""The new job page: one form, shown again with what workers found until it is sent and makes a job.

The same form sent twice (a double click, two browsers, a reload) makes one job: its name is the idempotency key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel
from starlette.datastructures import FormData

from api_client.client import PackagingClient
from api_client.console.context import AskWorkers, Client
from api_client.console.pages.form import CONTEXTS, PLAIN, SOURCES, NewJobForm
from api_client.console.pages.form_request import build_request, field_of
from api_client.console.pages.job import Submitter
from api_client.console.pages.job_view import template_title
from api_client.console.pages.language import page_language
from api_client.console.pages.lookup import Answers, PathAnswers, base_of
from api_client.console.pages.offers import offer_presets, offer_runs, offer_tasks, with_own_scores
from api_client.console.pages.prospect import chosen_name, foresee, judge, memory_of, stages_of, times_of, type_groups
from api_client.console.pages.size_chart import with_fit
from api_client.console.pages.view import render
from api_client.contract.errors import ErrorClass, ErrorCode, PackagingError
from api_client.contract.field_types import FieldKind, RequestField
from api_client.contract.fit import FitType
from api_client.contract.job import Job
from api_client.contract.recommend import TARGETS
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import blocked_switches
from api_client.contract.task import PACKAGEABLE, TrainingTask
from api_client.contract.templates import DEFAULT_TEMPLATE, Template
from api_client.ledger.questions import Questions

RECENT_JOBS = 50
RECENT_SHOWN = 5
OFFERED = 100
"""Registered tasks that are offered, the newest."""

router = APIRouter(include_in_schema=False)


async def _sent(request: Request) -> FormData:
    return await request.form()


Sent = Annotated[FormData, Depends(_sent)]


@router.get("/new")
def new_job_page(
    request: Request, client: Client, questions: AskWorkers, _: Submitter, like: str = "", fit: str = ""
) -> Response:
    """The form. A form without a name gets one, so that its address always names the same form.

    ``like`` fills it in from a job; ``fit`` asks for that fit of its model in place of the job's types.
    """
    if like:
        job = client.get(like)
        request_then = with_fit(job, FitType(fit)) if fit else job.request
        template = client.templates().get(request_then.template)
        return RedirectResponse(NewJobForm.of_request(request_then, template).named().address(), 303)
    form = NewJobForm.read(request.query_params)
    if not form.form:
        return RedirectResponse(form.named().address(), 303)
    return _page(request, client, questions, form)


@router.post("/new")
def start_job(request: Request, client: Client, questions: AskWorkers, _: Submitter, sent: Sent) -> Response:
    """Make the job, or show the form again with what is wrong at its field."""
    form = NewJobForm.read(sent)
    try:
        looked = _answers(request).look(form, questions, anyone=bool(client.workers()))
        answers = _with_own_scores(looked, form, client)
        wanted = build_request(_filled_in(form, answers), client.templates().get(form.template))
        _refuse_what_workers_refuse(answers)
        job = client.submit(wanted)
    except PackagingError as error:
        if error.error_class is ErrorClass.TRANSIENT:
            raise
        if error.code is ErrorCode.IDEMPOTENCY_CONFLICT:
            form = form.named()
        return _page(request, client, questions, form, error)
    return RedirectResponse(f"/jobs/{quote(job.id, safe='')}", 303)


def _answers(request: Request) -> Answers:
    state = request.app.state
    if not hasattr(state, "page_answers"):
        state.page_answers = Answers()
    answers: Answers = state.page_answers
    return answers


def _refuse_what_workers_refuse(answers: PathAnswers) -> None:
    """A path that a worker refuses now would only fail the job later; what it could not tell is left to the job."""
    for field, error in answers.errors:
        if error.error_class is ErrorClass.REFUSE:
            error.fields.setdefault("field", field)
            raise error


def _page(
    request: Request,
    client: PackagingClient,
    questions: Questions,
    form: NewJobForm,
    refused: PackagingError | None = None,
) -> Response:
    language, templates = page_language(request), client.templates()
    template = templates.get(form.template) or templates[DEFAULT_TEMPLATE]
    anyone = bool(client.workers())
    with ThreadPoolExecutor(max_workers=1) as pool:
        listed = pool.submit(_answers(request).runs, form, questions, anyone=anyone)
        answers = _with_own_scores(_answers(request).look(form, questions, anyone=anyone), form, client)
        runs, runs_unknown = listed.result()
    form = _filled_in(form, answers)
    switches = form.chosen_switches(template)
    blocked = frozenset() if template.locked else blocked_switches(switches)
    switches = {name: on and name not in blocked for name, on in switches.items()}
    types = form.chosen_types(template, switches)
    needs_checkpoint = switches["merge_lora"] or switches["export_lora"]
    judged = judge(form, answers)
    stages = stages_of(form, switches, types)
    prospect = foresee(form, form.base_model, switches, types, answers)
    recent = client.list(limit=RECENT_JOBS)
    times = times_of(stages, types, answers, prospect, recent)
    context: dict[str, Any] = {
        "form": form,
        "sources": SOURCES,
        "task_rows": _rows("task"),
        "more_rows": _rows("more"),
        "bounds": _BOUNDS,
        "more_names": [row.control.name for row in _rows("more") if row.control],
        "templates": _sorted(templates),
        "template": template,
        "template_name": template_title(template.name, language, templates),
        "switches": switches,
        "needs_checkpoint": needs_checkpoint,
        "answers": answers,
        "chosen_checkpoint": chosen_name(form.checkpoint, answers) if needs_checkpoint else "",
        "targets": [*TARGETS],
        "contexts": CONTEXTS,
        "judged": judged,
        "groups": type_groups(types, answers, language, judged),
        "types": types,
        "stages": stages,
        "prospect": prospect,
        "times": times,
        "memory": memory_of(times, answers),
        "tasks": _recent_tasks(recent),
        "known_tasks": offer_tasks(client.tasks(OFFERED)) if form.source == "task" else [],
        "runs": runs.listing if runs and runs.listing.roots else None,
        "run_offers": offer_runs(runs.listing.runs, form) if runs else [],
        "runs_unknown": runs_unknown,
        "presets": offer_presets(form, language),
        "blocked": blocked,
        "problem": refused.told(language) if refused else None,
        "problem_field": field_of(refused) if refused else None,
        "asked_errors": {field: error.told(language) for field, error in _known_problems(form, answers)},
    }
    return render(request, "new.html", context, 422 if refused else 200)


def _known_problems(form: NewJobForm, answers: PathAnswers) -> Iterator[tuple[str, PackagingError]]:
    """What is wrong before the form is sent, with the field."""
    yield from answers.errors
    status = form.plain["task_status"]
    if form.source == "task" and status not in PACKAGEABLE:
        message = f"{status}: only completed, stopped or failed tasks can be packaged"
        yield "task_status", PackagingError(ErrorCode.TASK_NOT_PACKAGEABLE, message)


def _filled_in(form: NewJobForm, answers: PathAnswers) -> NewJobForm:
    """What a run says of itself, where the form leaves it open: base model and checkpoint."""
    if form.source == "paths":
        return form
    listing = answers.run.listing if answers.run else None
    checkpoint = form.checkpoint
    kept = form.source == "task" and "/" in checkpoint
    if listing and not kept and not listing.find(chosen_name(checkpoint, answers)):
        checkpoint = listing.best or listing.latest or ""
    named = form.own_base_model
    filled = "" if named else form.told_base_model or base_of(answers.run) or form.base_filled
    return replace(form, base_model=named or filled, base_filled=filled, checkpoint=checkpoint)


def _bounds(path: str) -> dict[str, int]:
    """``min`` and ``max`` of a number's control, as the request has them."""
    model: type[BaseModel] = PackagingRequest
    *parents, name = path.split(".")
    for parent in parents:
        model = type(getattr(model(), parent))
    limits = model.model_fields[name].metadata
    return {
        bound: getattr(limit, attribute)
        for limit in limits
        for attribute, bound in (("ge", "min"), ("le", "max"))
        if hasattr(limit, attribute)
    }


_BOUNDS = {row.path: _bounds(row.path) for row in PLAIN.values() if row.kind in (FieldKind.NUMBER, FieldKind.FRACTION)}


def _rows(section: str) -> list[RequestField]:
    """The fields of a section, boxes to tick last."""
    rows = [row for row in PLAIN.values() if row.control and row.control.section == section]
    return sorted(rows, key=lambda row: row.kind is FieldKind.SWITCH)


def _sorted(templates: dict[str, Template]) -> Sequence[Template]:
    """The default first, ``custom`` last, a site's own before it."""
    return sorted(templates.values(), key=lambda template: (not template.locked, template.name != DEFAULT_TEMPLATE))


def _with_own_scores(answers: PathAnswers, form: NewJobForm, client: PackagingClient) -> PathAnswers:
    """The answers, with the scores that an orchestrator registered for the task of this run in the trainer's place."""
    if answers.run is None:
        return answers
    task_id = form.says("task_id") if form.source == "task" else ""
    known = client.task(task_id) if task_id else None
    if known is None or not known.is_of(form.run):
        return answers
    listing = with_own_scores(answers.run.listing, known)
    return replace(answers, run=answers.run.model_copy(update={"listing": listing}))


def _recent_tasks(jobs: Sequence[Job]) -> list[tuple[TrainingTask, str]]:
    """Training tasks of recent jobs, the newest first, each with the address of a form for it."""
    known: dict[str, tuple[TrainingTask, str]] = {}
    for job in jobs:
        task = job.request.task
        if task is not None and task.task_id not in known:
            known[task.task_id] = (task, NewJobForm.of_task(task).address())
    return [*known.values()][:RECENT_SHOWN]
