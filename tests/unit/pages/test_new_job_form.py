from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.datastructures import QueryParams

from api_client.console.pages.form import PLAIN, NewJobForm
from api_client.console.pages.form_request import build_request, field_of
from api_client.console.pages.lookup import KEPT_S, Answers, PathAnswers, base_of
from api_client.console.pages.prospect import foresee, judge, memory_of, stages_of, times_of, type_groups
from api_client.contract.disk_need import DiskNeed
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QUANT_TYPES, QuantType
from api_client.contract.recommend import ModelShape
from api_client.contract.request import PackagingRequest
from api_client.contract.templates import BUILTIN_TEMPLATES, SWITCHES
from api_client.ledger.questions import DiskRoom, RunAnswer, SizesAnswer, SpaceAnswer
from api_client.runs.checkpoints import Checkpoint, CheckpointList
from api_client.runs.kinds import CheckpointKind
from api_client.words.language import Language
from tests.any_request import requests

DEFAULT, CUSTOM = BUILTIN_TEMPLATES["merge_quantize"], BUILTIN_TEMPLATES["custom"]
SHAPE = ModelShape(architecture="llama", kv_heads=(2,), key_length=8, value_length=8, embedding_length=8, vocabulary=9)
SIZES = SizesAnswer(host="h", model="/b", shape=SHAPE, sizes=dict.fromkeys(QuantType, 1000), memory_bytes=1)


def read(address: str) -> NewJobForm:
    return NewJobForm.read(QueryParams(address.partition("?")[2]))


def filled(**values: Any) -> NewJobForm:
    plain = {name: values.pop(name) for name in [*values] if name in PLAIN}
    form = NewJobForm(**values)
    return replace(form, plain={**form.plain, **plain})


def listing(*names: str) -> RunAnswer:
    found = [
        Checkpoint(
            name=name,
            path=f"/r/{name}",
            step=1,
            time=datetime.now(UTC),
            kind=CheckpointKind.ADAPTER,
            size_bytes=9,
            weights_bytes=7,
        )
        for name in names
    ]
    last = names[-1] if names else None
    return RunAnswer(host="h", listing=CheckpointList(directory="/r", checkpoints=tuple(found), latest=last))


def test_an_address_brings_the_form_back() -> None:
    form = filled(source="task", run="/r/ü & x", quant_types=("Q4_K_M", "Q8_0"), types_shown="1", labels="a=b\nc=d")
    assert read(form.address()) == form
    assert dict(parse_qsl(NewJobForm(form="x").address().partition("?")[2])) == {"form": "x"}


def test_a_request_brings_its_form_back() -> None:
    request = PackagingRequest(
        template="custom",
        options={"merge_lora": False, "export_gguf": True, "quantize": True, "export_lora": False},
        base_model="/b",
        output_dir="/o",
        quant_types=["Q8_0"],
        labels={"a": "b"},
        priority=7,
        upload=False,
        overwrite=True,
        imatrix="/i.gguf",
    )
    form = read(NewJobForm.of_request(request, CUSTOM).address())
    again = build_request(form, CUSTOM)
    fields = request.model_fields_set
    assert again.model_dump(include=fields) == request.model_dump(include=fields)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request_=requests())
def test_any_request_comes_back_from_its_own_form(request_: PackagingRequest) -> None:
    template = BUILTIN_TEMPLATES[request_.template]
    again = build_request(read(NewJobForm.of_request(request_, template).address()), template)
    assert again == request_.model_copy(update={"idempotency_key": None})


def test_a_new_form_says_nothing() -> None:
    """What is the default is not stored, so that an older worker can run what a newer console sends."""
    assert build_request(NewJobForm(source="paths", options_shown=""), DEFAULT).model_fields_set == {"template"}


@pytest.mark.parametrize(
    ("form", "template", "expected"),
    [
        (NewJobForm(), DEFAULT, ("Q4_K_M",)),
        (NewJobForm(types_shown="1"), DEFAULT, ()),
        (NewJobForm(types_shown="1", quant_types=("Q8_0",)), DEFAULT, ("Q8_0",)),
        (NewJobForm(quant_types=("Q8_0",)), BUILTIN_TEMPLATES["merge"], ()),
        (NewJobForm(switches_shown="1"), CUSTOM, ()),
    ],
)
def test_types_are_the_templates_until_somebody_was_asked(form: NewJobForm, template: Any, expected: Any) -> None:
    assert form.chosen_types(template, form.chosen_switches(template)) == expected


def test_switches_of_a_locked_template_are_not_sent() -> None:
    form = NewJobForm(
        base_model="/b", checkpoint="/r/c", output_dir="/o", switches=("export_lora",), switches_shown="1"
    )
    assert build_request(form, DEFAULT).options.chosen() == {}
    assert build_request(form, CUSTOM).options.chosen()["export_lora"] is True


def test_a_checkpoint_of_a_run_is_named_by_its_path() -> None:
    form = NewJobForm(run="/r/", base_model="/b", checkpoint="checkpoint-9", output_dir="/o")
    assert build_request(form, DEFAULT).checkpoint == "/r/checkpoint-9"
    assert build_request(form, BUILTIN_TEMPLATES["quantize_base"]).checkpoint is None


def test_errors_find_their_field() -> None:
    def error(code: ErrorCode, **fields: object) -> PackagingError:
        return PackagingError(code, "", fields=fields)

    assert field_of(error(ErrorCode.REQUEST_INVALID, field="task.output_dir")) == "run"
    assert field_of(error(ErrorCode.REQUEST_INVALID, field="imatrix.path")) == "imatrix_path"
    assert field_of(error(ErrorCode.REQUEST_INVALID, field="quant_types.0")) == "quant_types"
    assert field_of(error(ErrorCode.PATH_NOT_ALLOWED, field="output_dir")) == "output_dir"
    assert field_of(error(ErrorCode.INTERNAL_ERROR)) is None
    assert field_of(error(ErrorCode.REQUEST_INVALID, field="upload_elsewhere")) is None


def test_files_and_room() -> None:
    space = SpaceAnswer(host="h", path="/o", exists=True, free_bytes=2500, total_bytes=9000)
    found, switches = PathAnswers(sizes=SIZES, space=space), NewJobForm().chosen_switches(DEFAULT)
    small = foresee(NewJobForm(), "/b", switches, ("Q4_K_M",), found)
    assert [file.name for file in small.files] == ["merged_model.gguf", "merged_model-Q4_K_M.gguf", "quality.json"]
    assert (small.total_bytes, small.too_little) == (2000, False)
    stages = stages_of(NewJobForm(), switches, ("Q4_K_M",))
    assert times_of(stages, ("Q4_K_M",), PathAnswers(), small, []) is None
    times = times_of(stages, ("Q4_K_M",), found, small, [])
    assert times is not None
    assert (times.jobs, dict(times.seconds)) == (0, {})
    assert foresee(NewJobForm(), "/b", switches, ("Q4_K_M", "Q8_0"), found).too_little
    two = space.model_copy(update={"scratch": DiskRoom(path="/s", free_bytes=1999)})
    apart = foresee(NewJobForm(), "/b", switches, ("Q4_K_M",), PathAnswers(sizes=SIZES, space=two))
    assert apart.disks == (DiskNeed("/o", 2000, 2500), DiskNeed("/s", 2000, 1999))
    assert apart.too_little
    memory = memory_of(times, found)
    assert memory is not None
    assert (memory.measured, memory.of_machine_bytes) == (False, SIZES.memory_bytes)
    assert memory_of(None, found) is None
    assert foresee(NewJobForm(), "/b", switches, ("Q4_K_M",), PathAnswers()).total_bytes is None
    base_only = filled(keep_unquantized="").chosen_switches(BUILTIN_TEMPLATES["quantize_base"])
    alone = foresee(filled(keep_unquantized=""), "/models/My-7B", base_only, ("Q8_0",), found)
    assert [file.name for file in alone.files] == ["My-7B-Q8_0.gguf", "quality.json"]
    lora = NewJobForm(checkpoint="latest").chosen_switches(BUILTIN_TEMPLATES["lora_only"])
    [adapter] = foresee(NewJobForm(checkpoint="latest"), "/b", lora, (), PathAnswers(run=listing("c-1", "c-2"))).files
    assert (adapter.name, adapter.size_bytes) == ("c-2-lora.gguf", 7)


def test_a_model_that_sees_comes_with_its_projector() -> None:
    sizes = SIZES.model_copy(update={"projector_bytes": 300})
    found, switches = PathAnswers(sizes=sizes), NewJobForm().chosen_switches(DEFAULT)
    for form, size in ((NewJobForm(), 300), (filled(projector="f16"), None), (filled(projector="off"), 0)):
        files = {file.name: file.size_bytes for file in foresee(form, "/b", switches, ("Q4_K_M",), found).files}
        assert files.get("mmproj-merged_model.gguf", 0) == size
    blind = foresee(NewJobForm(), "/b", switches, ("Q4_K_M",), PathAnswers(sizes=SIZES))
    assert not [file.name for file in blind.files if file.name.startswith("mmproj-")]


def test_types_in_groups_with_sizes() -> None:
    groups = type_groups(("Q8_0",), PathAnswers(sizes=SIZES), Language.ZH)
    rows = [row for group in groups.values() for row in group]
    assert len(rows) == len(QUANT_TYPES)
    assert [row.name for row in rows if row.chosen] == ["Q8_0"]
    assert {row.size_bytes for row in rows} == {1000}
    assert "imatrix" in [
        stage.value for stage in stages_of(NewJobForm(), CUSTOM.model_dump(include=set(SWITCHES)), ("IQ1_S",))
    ]


def test_types_are_marked_for_the_place_to_run() -> None:
    sizes = {quant: round(info.bits_per_weight * 10**9) for quant, info in QUANT_TYPES.items()}  # 8B weights
    found = PathAnswers(sizes=SIZES.model_copy(update={"sizes": sizes}))

    def marked(**form: Any) -> tuple[list[str], list[str]]:
        judged = judge(NewJobForm(**form), found)
        rows = [row for group in type_groups((), found, Language.EN, judged).values() for row in group]
        return [row.name for row in rows if row.recommended], [row.name for row in rows if not row.fits]

    assert marked() == (["Q4_K_M", "Q5_K_M", "Q8_0"], [])
    assert marked(target="gpu-12g") == (["Q5_K_M"], ["F32", "F16", "BF16"])
    assert marked(target="gpu-24g") == (["Q8_0", "F16"], ["F32"])
    assert judge(NewJobForm(target="gpu-12g"), PathAnswers()) is None


@pytest.mark.parametrize("target", ["", "gpu-12g"])
def test_a_type_that_the_model_cannot_have_is_marked_so_and_never_recommended(target: str) -> None:
    sizes = {quant: 1000 for quant in QuantType if quant not in (QuantType.MXFP4_MOE, QuantType.Q5_K_M)}
    found = PathAnswers(sizes=SIZES.model_copy(update={"sizes": sizes}))
    judged = judge(NewJobForm(target=target), found)
    rows = {row.name: row for group in type_groups((), found, Language.EN, judged).values() for row in group}
    assert [row.name for row in rows.values() if row.unfit] == ["Q5_K_M", "MXFP4_MOE"]
    assert rows["MXFP4_MOE"].size_bytes is rows["MXFP4_MOE"].memory_bytes is None
    assert not rows["Q5_K_M"].recommended
    before = type_groups((), PathAnswers(), Language.EN)
    assert not [row for group in before.values() for row in group if row.unfit], "nothing was measured"


def test_a_place_to_run_that_nobody_knows_is_none() -> None:
    form = read("/new?target=6GB&context=7")
    assert (form.target, form.context) == ("", "4096")


@pytest.mark.parametrize(
    ("named", "expected"),
    [("/m/base", "/m/base"), ("owner/name", "hf://owner/name"), ("s3://b/x", "s3://b/x"), ("../x", ""), (None, "")],
)
def test_the_base_model_that_a_run_names(named: str | None, expected: str) -> None:
    assert base_of(listing().model_copy(update={"base_model": named})) == expected


class Worker:
    """Answers at once, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def checkpoints(self, run: str) -> RunAnswer:
        self.asked.append(run)
        return listing("c-1").model_copy(update={"base_model": "/b"})

    def sizes(self, model: str) -> SizesAnswer:
        self.asked.append(model)
        return SIZES

    def space(self, path: str) -> SpaceAnswer:
        self.asked.append(path)
        raise PackagingError(ErrorCode.PATH_NOT_ALLOWED, path)


def test_answers_are_kept_for_a_while_and_errors_are_not() -> None:
    now = [0.0]
    answers, worker = Answers(lambda: now[0]), Worker()
    form = NewJobForm(run="/r", output_dir="/o")
    found = answers.look(form, worker, anyone=True)  # type: ignore[arg-type]
    assert found.sizes is SIZES
    assert [field for field, _ in found.errors] == ["output_dir"]
    assert sorted(worker.asked) == ["/b", "/o", "/r"]
    answers.look(form, worker, anyone=True)  # type: ignore[arg-type]
    assert sorted(worker.asked) == ["/b", "/o", "/o", "/r"]
    now[0] = KEPT_S["checkpoints"] + 1
    answers.look(form, worker, anyone=True)  # type: ignore[arg-type]
    assert sorted(worker.asked) == ["/b", "/o", "/o", "/o", "/r", "/r"]
    assert answers.look(NewJobForm(run="relative"), worker, anyone=True) == PathAnswers()  # type: ignore[arg-type]
    nobody = answers.look(NewJobForm(source="paths", base_model="/x"), worker, anyone=False)  # type: ignore[arg-type]
    assert [error.code for _, error in nobody.errors] == [ErrorCode.QUESTION_UNANSWERED]
