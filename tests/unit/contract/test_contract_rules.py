"""The option rules, walked over every combination against a second, independently written statement of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import StageName
from api_client.contract.plan import plan_stages
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.contract.templates import BUILTIN_TEMPLATES, SiteTemplate, Template

C = ErrorCode

# merge_lora, export_gguf, quantize, export_lora; quant types where the request names none
TABLE = {
    "merge_quantize": ((1, 1, 1, 0), ["Q4_K_M"]),
    "merge": ((1, 1, 0, 0), []),
    "quantize_base": ((0, 1, 1, 0), ["Q4_K_M"]),
    "lora_only": ((0, 0, 0, 1), []),
    "custom": ((1, 1, 1, 0), ["Q4_K_M"]),
}
Switches = tuple[bool | None, ...]
NAMES = ("merge_lora", "export_gguf", "quantize", "export_lora")
TYPE_CHOICES: tuple[list[str] | None, ...] = (None, [], ["Q8_0"], ["Q6_K", "F16"], ["Q8_0", "Q8_0"])


def broken(template: str, switches: Switches, checkpoint: bool, types: list[str] | None) -> set[ErrorCode]:
    """Every rule that the combination breaks."""
    defaults, default_types = TABLE[template]
    if template != "custom" and any(value is not None for value in switches):
        return {C.TEMPLATE_LOCKED}
    merge, gguf, quantize, lora = (bool(d) if s is None else s for s, d in zip(switches, defaults, strict=True))
    codes = set()
    if quantize and not gguf:
        codes.add(C.QUANTIZE_NEEDS_EXPORT)
    if merge and lora:
        codes.add(C.MERGE_EXCLUDES_LORA_EXPORT)
    if not (gguf or lora):
        codes.add(C.NOTHING_TO_DO)
    if types and not quantize:
        codes.add(C.QUANT_TYPES_NEED_QUANTIZE)
    wanted = default_types if types is None else types
    if quantize and not wanted:
        codes.add(C.QUANT_TYPES_EMPTY)
    if quantize and len(set(wanted)) < len(wanted):
        codes.add(C.QUANT_TYPE_DUPLICATE)
    if (merge or lora) and not checkpoint:
        codes.add(C.CHECKPOINT_REQUIRED)
    return codes


def make(template: str, switches: Switches, checkpoint: bool, types: list[str] | None) -> PackagingRequest:
    options = {name: value for name, value in zip(NAMES, switches, strict=True) if value is not None}
    more: dict[str, Any] = {} if types is None else {"quant_types": types}
    if checkpoint:
        more["checkpoint"] = "/runs/42/checkpoint-900"
    more |= {"template": template, "options": options}
    return PackagingRequest(base_model="/models/base", output_dir="/out", **more)


@pytest.mark.parametrize("checkpoint", [True, False], ids=["checkpoint", "no-checkpoint"])
@pytest.mark.parametrize("template", list(TABLE))
def test_every_combination_is_accepted_or_refused_as_the_rules_say(template: str, checkpoint: bool) -> None:
    seen: set[ErrorCode | None] = set()
    for switches, types in product(product((None, True, False), repeat=4), TYPE_CHOICES):
        case = (template, switches, checkpoint, types)
        expected = broken(*case)
        if expected:
            with pytest.raises(PackagingError) as caught:
                resolve_request(make(*case))
            assert caught.value.code in expected, f"{case}: refused with {caught.value.code}, breaks {expected}"
            assert caught.value.remedy
            seen.add(caught.value.code)
            continue
        _, options = resolve_request(make(*case))
        defaults, default_types = TABLE[template]
        want = tuple(bool(d) if s is None else s for s, d in zip(switches, defaults, strict=True))
        assert (options.merge_lora, options.export_gguf, options.quantize, options.export_lora) == want, case
        assert list(options.quant_types) == ((default_types if types is None else types) if want[2] else []), case
        seen.add(None)
    # the walk must have met both outcomes, or it shows nothing
    if template == "custom":
        codes = {
            None,
            C.QUANTIZE_NEEDS_EXPORT,
            C.MERGE_EXCLUDES_LORA_EXPORT,
            C.NOTHING_TO_DO,
            C.QUANT_TYPES_NEED_QUANTIZE,
            C.QUANT_TYPES_EMPTY,
            C.QUANT_TYPE_DUPLICATE,
        }
        assert codes <= seen
    else:
        assert C.TEMPLATE_LOCKED in seen
    needs_checkpoint = TABLE[template][0][0] or TABLE[template][0][3]
    assert (C.CHECKPOINT_REQUIRED in seen) == (not checkpoint and bool(needs_checkpoint))


PLANS = [
    ("merge_quantize", {}, "prepare merge convert quantize verify evaluate publish"),
    ("merge_quantize", {"evaluation": "off"}, "prepare merge convert quantize verify publish"),
    ("merge", {}, "prepare merge convert verify evaluate publish"),
    ("quantize_base", {}, "prepare convert quantize verify evaluate publish"),
    ("lora_only", {}, "prepare export_lora verify publish"),
    ("merge_quantize", {"quant_types": ["IQ1_S"]}, "prepare merge convert imatrix quantize verify evaluate publish"),
    ("merge_quantize", {"imatrix": "compute"}, "prepare merge convert imatrix quantize verify evaluate publish"),
    ("merge_quantize", {"imatrix": "/m.gguf"}, "prepare merge convert imatrix quantize verify evaluate publish"),
    ("merge_quantize", {"imatrix": "off"}, "prepare merge convert quantize verify evaluate publish"),
    (
        "custom",
        {"options": {"merge_lora": False, "export_lora": True}},
        "prepare convert quantize export_lora verify evaluate publish",
    ),
    ("custom", {"options": {"merge_lora": False, "quantize": False}}, "prepare convert verify evaluate publish"),
]


@pytest.mark.parametrize(("template", "extra", "stages"), PLANS)
def test_plan_has_the_stages_that_the_options_need_in_order(template: str, extra: dict[str, Any], stages: str) -> None:
    fields = {"template": template, "base_model": "/b", "checkpoint": "/c", "output_dir": "/o"} | extra
    request, options = resolve_request(PackagingRequest(**fields))
    assert " ".join(plan_stages(request, options)) == stages
    assert all(isinstance(stage, StageName) for stage in plan_stages(request, options))


def refused(**data: Any) -> PackagingError:
    data = {"base_model": "/b", "checkpoint": "/c", "output_dir": "/o"} | data
    with pytest.raises(PackagingError) as caught:
        resolve_request(PackagingRequest(**{k: v for k, v in data.items() if v is not None}))
    return caught.value


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"template": "lora_only", "evaluation": {"max_mean_kld": 0.1}}, "evaluation"),
        ({"template": "quantize_base", "checkpoint": None, "evaluation": {"min_retention": 0.9}}, "min_retention"),
    ],
)
def test_a_bound_that_nothing_can_be_held_to_is_refused_at_once(data: dict[str, Any], field: str) -> None:
    error = refused(**data)
    assert error.code is C.REQUEST_INVALID
    assert field in error.message


def test_a_locked_switch_is_named_even_when_set_to_the_template_s_own_value() -> None:
    error = refused(template="merge", options={"quantize": False})
    assert error.code is C.TEMPLATE_LOCKED
    assert "'quantize'" in error.message
    assert "off" in error.message
    assert error.fields == {"template": "merge", "switches": ["quantize"]}


def test_a_misspelt_template_is_answered_with_the_nearest_one() -> None:
    error = refused(template="merge_quantise")
    assert error.code is C.UNKNOWN_TEMPLATE
    assert "merge_quantize" in error.message
    assert error.fields["known"] == sorted(TABLE)


def test_missing_paths_have_codes_of_their_own() -> None:
    assert refused(base_model=None).code is C.BASE_MODEL_REQUIRED
    assert refused(output_dir=None).code is C.OUTPUT_DIR_REQUIRED
    assert refused(checkpoint=None).fields == {"switch": "merge_lora"}
    assert refused(checkpoint=None, template="lora_only").fields == {"switch": "export_lora"}


@pytest.mark.parametrize("quant", [q for q in QuantType if q.value in ("IQ1_S", "IQ2_XXS", "IQ3_XXS", "Q2_K_S")])
def test_types_that_need_a_matrix_are_refused_with_imatrix_off(quant: QuantType) -> None:
    error = refused(quant_types=["Q8_0", quant], imatrix="off")
    assert error.code is C.IMATRIX_REQUIRED
    assert error.fields == {"quant_types": [quant.value]}


def test_an_option_that_could_have_no_effect_is_refused() -> None:
    assert refused(template="merge", imatrix="compute").code is C.REQUEST_INVALID
    assert "imatrix" in refused(template="merge", imatrix="/m.gguf").message
    assert "save_merged" in refused(template="quantize_base", save_merged=True).message


SITE = Template(
    name="site_small",
    title_en="Small",
    title_zh="小",
    description_en="d",
    description_zh="d",
    merge_lora=True,
    export_gguf=True,
    quantize=True,
    export_lora=False,
    quant_types=(QuantType.Q2_K, QuantType.Q8_0),
)


def test_a_site_s_template_is_resolved_and_locked_like_a_built_in_one() -> None:
    templates = BUILTIN_TEMPLATES | {SITE.name: SITE}
    request = PackagingRequest(template=SiteTemplate("site_small"), base_model="/b", checkpoint="/c", output_dir="/o")
    assert resolve_request(request, templates)[1].quant_types == (QuantType.Q2_K, QuantType.Q8_0)
    locked = PackagingRequest(
        template=SiteTemplate("site_small"), options={"quantize": True}, base_model="/b", output_dir="/o"
    )
    with pytest.raises(PackagingError, match="site_small"):
        resolve_request(locked, templates)
    with pytest.raises(PackagingError) as caught:
        resolve_request(request)
    assert caught.value.code is C.UNKNOWN_TEMPLATE


def test_the_built_in_templates_are_those_of_the_table() -> None:
    assert list(BUILTIN_TEMPLATES) == list(TABLE)
    for name, template in BUILTIN_TEMPLATES.items():
        assert template.name == name
        assert template.locked == (name != "custom")
        for text in (template.title_en, template.title_zh, template.description_en, template.description_zh):
            assert text.strip()
