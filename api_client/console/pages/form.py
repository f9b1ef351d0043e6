"""The new job form as it was filled in: text, nothing checked. ``form_request`` makes a request of it.

What a plain field is called, and what its text means, stands in the table of request fields; the parts of the page that
have rules of their own (source, template, switches, checkpoint, types, places) have attributes of their own here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from urllib.parse import urlencode

from starlette.datastructures import ImmutableMultiDict

from api_client.contract.field_types import FieldKind, RequestField
from api_client.contract.field_values import exact, text_of, typed, value_at
from api_client.contract.fit import FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import DEFAULT_CONTEXT, TARGETS
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELDS
from api_client.contract.task import TaskStatus, TrainingTask
from api_client.contract.templates import BUILTIN_TEMPLATES, CUSTOM_TEMPLATE, DEFAULT_TEMPLATE, SWITCHES, Template

SOURCES: Final = ("run", "task", "paths")
"""What a job is made from: a run's directory, a training task, or plain paths."""
CONTEXTS: Final = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Context lengths to choose from, in tokens."""
PLAIN: Final[dict[str, RequestField]] = {row.control.name: row for row in FIELDS if row.control and row.control.section}
"""The fields whose controls the page makes from the table alone, by control."""
NO_TYPES: Final = "none"
"""What ``types_given`` holds for a request that names no type, which is not the same as one that leaves it open."""
_MULTIPLE: Final = ("quant_types", "switches")
_MAX_CHARACTERS: Final = 262_144
"""More than the longest labels take, each character escaped, or the recipe of a model of a thousand layers."""
_START: Final = PackagingRequest(
    task=TrainingTask(task_id="-", status=TaskStatus.COMPLETED, base_model="/", output_dir="/")
)
"""Where the fields of a new form start; of the task all but its names."""


def _start_texts() -> dict[str, str]:
    return {name: text_of(row.kind, value_at(_START, row.path)) for name, row in PLAIN.items()} | {"task_id": ""}


@dataclass(frozen=True)
class NewJobForm:
    """Every field, by the name it has in the page.

    ``types_shown``, ``switches_shown`` and ``options_shown`` say that the page had those parts, so that a box that is
    not ticked means no, and not that nobody was asked.
    """

    form: str = ""
    """Names this form; the idempotency key is made of it, so whoever sends it again gets the same job."""
    source: str = "run"
    run: str = ""
    find_run: str = ""
    """A part of the paths of the runs that the page offers; it is no part of the request."""
    base_model: str = ""
    base_filled: str = ""
    """The base model as it was filled in from a run; while nobody changed it, another run replaces it."""
    task_base_model: str = ""
    """The base model that the task itself names, where that is known."""
    checkpoint: str = ""
    weights: str = ""
    """A checkpoint of full weights in the base model's place, where no adapter is used."""
    template: str = DEFAULT_TEMPLATE
    switches: tuple[str, ...] = ()
    switches_shown: str = ""
    switches_given: str = ""
    """The switches that the request of this form set itself, with commas; of others only changes are sent."""
    quant_types: tuple[str, ...] = ()
    fits: str = ""
    """Fits, parted by blanks or commas."""
    types_shown: str = ""
    types_given: str = ""
    """The types that the request of this form named, in its order, with commas; empty: those of the template."""
    target: str = ""
    """The place to run, for which types are recommended; it is no part of the request."""
    context: str = str(DEFAULT_CONTEXT)
    output_dir: str = ""
    options_shown: str = ""
    plain: Mapping[str, str] = field(default_factory=_start_texts)
    """Texts of the plain fields, by control."""

    @classmethod
    def read(cls, data: ImmutableMultiDict[str, Any]) -> Self:
        """The form as a browser sent it; fields that it does not have keep their defaults."""
        sent = {name: str(data[name]).strip()[:_MAX_CHARACTERS] for name in data}
        values: dict[str, Any] = {name: sent[name] for name in _own_names() if name in sent}
        values |= {name: tuple(str(value) for value in data.getlist(name))[:64] for name in _MULTIPLE}
        asked = bool(values.get("options_shown"))
        plain = {name: _sent_text(name, row, sent, asked=asked) for name, row in PLAIN.items()}
        form = cls(**values, plain=plain)
        return replace(
            form,
            source=form.source if form.source in SOURCES else SOURCES[0],
            target=form.target if form.target in TARGETS else "",
            context=form.context if form.context in map(str, CONTEXTS) else str(DEFAULT_CONTEXT),
        )

    @classmethod
    def of_request(cls, request: PackagingRequest, template: Template | None) -> Self:
        """The form that would make this request again; the template is the request's, where it is still known."""
        template = template or BUILTIN_TEMPLATES[CUSTOM_TEMPLATE]
        chosen = request.options.chosen()
        switches = {name: chosen.get(name, bool(getattr(template, name))) for name in SWITCHES}
        adapter = switches["merge_lora"] or switches["export_lora"]
        types = request.quant_types
        return replace(
            cls.of_task(request.task) if request.task else cls(source="paths"),
            base_model=_exact(request.base_model),
            checkpoint=_exact(request.checkpoint) if adapter else "",
            weights="" if adapter else _exact(request.checkpoint),
            template=request.template,
            switches=() if template.locked else tuple(name for name, on in switches.items() if on),
            switches_shown="" if template.locked else "1",
            switches_given=",".join(chosen),
            quant_types=tuple(quant.value for quant in types or () if isinstance(quant, QuantType)),
            fits=" ".join(quant.value for quant in types or () if isinstance(quant, FitType)),
            types_shown="1" if types else "",
            types_given="" if types is None else ",".join(types) or NO_TYPES,
            output_dir=_exact(request.output_dir),
            options_shown="1",
            plain=_texts(request),
        )

    @classmethod
    def of_task(cls, task: TrainingTask) -> Self:
        """The form for a training task, with everything else open."""
        return cls(
            source="task",
            run=_exact(task.output_dir),
            base_model=_exact(task.base_model),
            task_base_model=_exact(task.base_model),
            plain=_texts(PackagingRequest(task=task)),
        )

    @property
    def own_base_model(self) -> str:
        """The base model, where a person named it."""
        return "" if self.base_model == self.base_filled else self.base_model

    @property
    def told_base_model(self) -> str:
        """The base model that the task names, where the form is about one."""
        return self.task_base_model if self.source == "task" else ""

    @property
    def own_output_dir(self) -> str:
        """The output directory; the run's own where none is named."""
        return self.output_dir or (self.run if self.source != "paths" else "")

    def says(self, name: str) -> str:
        """A plain field as it is meant: the text in it, without the quotes that kept it."""
        return typed(self.plain[name])

    def address(self) -> str:
        """Address of the page with this form, filled in."""
        return f"/new?{urlencode([*self._pairs()])}"

    def _pairs(self) -> Iterable[tuple[str, str]]:
        start = NewJobForm()
        for name in _own_names():
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from ((name, item) for item in value)
            elif value != getattr(start, name):
                yield name, value
        # A box that is ticked must be there once the others count as asked for.
        every = bool(self.options_shown)
        for name, text in self.plain.items():
            ticked = every and PLAIN[name].kind is FieldKind.SWITCH and text
            if text != start.plain[name] or ticked:
                yield name, text

    def named(self) -> Self:
        """This form with a name of its own."""
        return replace(self, form=secrets.token_urlsafe(12))

    def chosen_switches(self, template: Template) -> dict[str, bool]:
        """The switches as the page shows them: the template's, or what was set where they are free."""
        if template.locked or not self.switches_shown:
            return {name: bool(getattr(template, name)) for name in SWITCHES}
        return {name: name in self.switches for name in SWITCHES}

    def chosen_types(self, template: Template, switches: Mapping[str, bool]) -> tuple[str, ...]:
        """The ticked quant types; the template's where nobody was asked yet."""
        if not switches["quantize"]:
            return ()
        return self.all_types if self.types_shown else tuple(quant_type.value for quant_type in template.quant_types)

    @property
    def all_types(self) -> tuple[str, ...]:
        """The ticked quant types and the fits that were written."""
        return (*self.quant_types, *self.fits.replace(",", " ").split())


def _exact(text: str | None) -> str:
    return "" if text is None else exact(text)


def _texts(request: PackagingRequest) -> dict[str, str]:
    """The plain fields of a request; without a task, those of a task are as in a new form."""
    texts = {name: text_of(row.kind, value_at(request, row.path)) for name, row in PLAIN.items()}
    if request.task is None:
        texts |= {name: text for name, text in _start_texts().items() if PLAIN[name].path.startswith("task.")}
    return texts


def _own_names() -> list[str]:
    """What has an attribute of its own, without the plain fields."""
    return [name for name in NewJobForm.__dataclass_fields__ if name != "plain"]


def _sent_text(name: str, row: RequestField, sent: Mapping[str, str], *, asked: bool) -> str:
    """A plain field's text as it was sent; a box that was there and was not sent is not ticked."""
    if asked and row.kind is FieldKind.SWITCH:
        return sent.get(name, "")
    return sent.get(name, NewJobForm().plain[name])
