"""The new job form as it was filled in: text, nothing checked. ``form_request`` makes a request of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import urlencode

from starlette.datastructures import ImmutableMultiDict

from api_client.recommend import DEFAULT_CONTEXT, TARGETS
from api_client.request import PackagingRequest
from api_client.templates import DEFAULT_TEMPLATE, SWITCHES, Template

SOURCES: Final = ("run", "task", "paths")
"""What a job is made from: a run's directory, a training task, or plain paths."""
CONTEXTS: Final = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Context lengths to choose from, in tokens."""
_MULTIPLE: Final = ("quant_types", "switches")
_CHECKS: Final = ("overwrite", "upload", "keep_unquantized")
_MAX_CHARACTERS: Final = 8192


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
    base_model: str = ""
    base_filled: str = ""
    """The base model as it was filled in from a run; while nobody changed it, another run replaces it."""
    checkpoint: str = ""
    task_id: str = ""
    task_status: str = "completed"
    task_kind: str = "sft"
    finetuning: str = "lora"
    template: str = DEFAULT_TEMPLATE
    switches: tuple[str, ...] = ()
    switches_shown: str = ""
    quant_types: tuple[str, ...] = ()
    types_shown: str = ""
    target: str = ""
    """The place to run, for which types are recommended; it is no part of the request."""
    context: str = str(DEFAULT_CONTEXT)
    output_dir: str = ""
    model_name: str = ""
    gguf_dtype: str = "auto"
    priority: str = "5"
    labels: str = ""
    imatrix: str = "auto"
    imatrix_path: str = ""
    overwrite: str = ""
    upload: str = "on"
    keep_unquantized: str = "on"
    options_shown: str = ""

    @classmethod
    def read(cls, data: ImmutableMultiDict[str, Any]) -> Self:
        """The form as a browser sent it; fields that it does not have keep their defaults."""
        values: dict[str, Any] = {
            name: str(data[name]).strip()[:_MAX_CHARACTERS]
            for name in cls.__dataclass_fields__
            if name in data and name not in _MULTIPLE
        }
        values |= {name: tuple(str(value) for value in data.getlist(name))[:64] for name in _MULTIPLE}
        if values.get("options_shown"):
            values |= {name: values.get(name, "") for name in _CHECKS}
        found = cls(**values)
        return replace(
            found,
            source=found.source if found.source in SOURCES else SOURCES[0],
            target=found.target if found.target in TARGETS else "",
            context=found.context if found.context in map(str, CONTEXTS) else str(DEFAULT_CONTEXT),
        )

    @classmethod
    def of_request(cls, request: PackagingRequest) -> Self:
        """The form that would make this request again."""
        task = request.task
        return cls(
            source="task" if task else "paths",
            run=task.output_dir if task else "",
            task_id=task.task_id if task else "",
            task_status=task.status.value if task else "completed",
            task_kind=task.kind if task else "sft",
            finetuning=task.finetuning if task else "lora",
            base_model=request.base_model or "",
            checkpoint=request.checkpoint or "",
            template=request.template,
            switches=tuple(name for name, on in request.options.chosen().items() if on),
            switches_shown="1" if request.options.chosen() else "",
            quant_types=tuple(quant.value for quant in request.quant_types or ()),
            types_shown="1" if request.quant_types else "",
            output_dir=request.output_dir or "",
            model_name=request.model_name or "",
            gguf_dtype=request.gguf_dtype,
            priority=str(request.priority),
            labels="\n".join(f"{key}={value}" for key, value in request.labels.items()),
            imatrix=request.imatrix.mode,
            imatrix_path=request.imatrix.path or "",
            overwrite="on" if request.overwrite else "",
            upload="on" if request.upload else "",
            keep_unquantized="on" if request.keep_unquantized else "",
            options_shown="1",
        )

    @property
    def own_base_model(self) -> str:
        """The base model, where a person named it."""
        return "" if self.base_model == self.base_filled else self.base_model

    @property
    def own_output_dir(self) -> str:
        """The output directory; the run's own where none is named."""
        return self.output_dir or (self.run if self.source != "paths" else "")

    def address(self) -> str:
        """Address of the page with this form, filled in."""
        return f"/new?{urlencode([*self._pairs()])}"

    def _pairs(self) -> Iterable[tuple[str, str]]:
        plain = NewJobForm()
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from ((name, item) for item in value)
            elif value != getattr(plain, name):
                yield name, value

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
        return self.quant_types if self.types_shown else tuple(quant.value for quant in template.quant_types)
