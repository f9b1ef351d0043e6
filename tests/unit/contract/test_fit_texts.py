"""How a fit is written: read in one form, named in files, refused with what was meant."""

from __future__ import annotations

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import FitBound, FitType, quant_type_of
from api_client.contract.outputs import InputNames, planned_outputs
from api_client.contract.plan import plan_stages
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import resolve_request
from api_client.contract.stages import StageName
from api_client.contract.tensor_types import type_set

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "canonical", "bound", "label"),
    [
        ("fit:5.5GiB", "fit:5.5GiB", FitBound(size_bytes=GIB * 11 // 2), "FIT-5.5GiB"),
        ("FIT:5.50gib", "fit:5.5GiB", FitBound(size_bytes=GIB * 11 // 2), "FIT-5.5GiB"),
        ("fit:6 GB", "fit:6GB", FitBound(size_bytes=6_000_000_000), "FIT-6GB"),
        ("fit:500m", "fit:500MB", FitBound(size_bytes=500_000_000), "FIT-500MB"),
        ("fit:145400123", "fit:145400123B", FitBound(size_bytes=145_400_123), "FIT-145400123B"),
        ("fit:4.5bpw", "fit:4.5bpw", FitBound(bits_per_weight=4.5), "FIT-4.50bpw"),
        ("fit:3.125 BPW", "fit:3.125bpw", FitBound(bits_per_weight=3.125), "FIT-3.125bpw"),
        ("fit:like:q4_k_m", "fit:like:Q4_K_M", FitBound(like=QuantType.Q4_K_M), "FIT-Q4_K_M"),
        ("fit:like:q4_k", "fit:like:Q4_K_M", FitBound(like=QuantType.Q4_K_M), "FIT-Q4_K_M"),
        ("fit:target:GPU-8G", "fit:target:gpu-8g", FitBound(target="gpu-8g"), "FIT-gpu-8g"),
        ("fit:target:6gb", "fit:target:6GB", FitBound(target="6GB"), "FIT-target-6GB"),
        ("fit:kld:.020", "fit:kld:0.02", FitBound(kld=0.02), "FIT-kld0.02"),
    ],
)
def test_a_fit_has_one_form(text: str, canonical: str, bound: FitBound, label: str) -> None:
    fit = quant_type_of(text)
    assert isinstance(fit, FitType)
    assert (str(fit), fit.value, fit.bound, fit.label) == (canonical, canonical, bound, label)
    assert FitType(fit) == fit, "read again, it is itself"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fit:", "is no size"),
        ("fit:0", "is no size"),
        ("fit:5.5", "is no size"),
        ("fit:-3GB", "is no size"),
        ("fit:4e9GB", "is no size"),
        ("fit:40bpw", "at most 32"),
        ("fit:like:Q4_K_X", "did you mean Q4_K_"),
        ("fit:like:fit:6GB", "no quant type"),
        ("fit:target:gpu-9g", "did you mean gpu-8g"),
        ("fit:kld:0", "number of nats"),
        ("fit:kld:", "number of nats"),
        ("fit:kld:nan", "number of nats"),
        ("fit:lik:Q4_K_M", "did you mean fit:like"),
    ],
)
def test_what_is_no_fit_is_refused(text: str, said: str) -> None:
    with pytest.raises(PackagingError, match=said) as caught:
        PackagingRequest(quant_types=["Q8_0", text])
    assert caught.value.code is ErrorCode.FIT_INVALID


def planned(**fields: object) -> tuple[list[str], tuple[StageName, ...]]:
    fields = {"base_model": "/m/base", "template": "quantize_base", "output_dir": "/o"} | fields
    request, options = resolve_request(PackagingRequest(**fields))  # type: ignore[arg-type]
    names = [output.name for output in planned_outputs(request, options, InputNames.of(request, options))]
    return names, plan_stages(request, options)


def test_fits_stand_beside_types_and_have_recipes() -> None:
    names, stages = planned(quant_types=["fit:5.5GiB", "Q8_0", "fit:kld:0.02"])
    assert [name for name in names if "FIT" in name or "Q8" in name] == [
        "base-FIT-5.5GiB.gguf",
        "base-Q8_0.gguf",
        "base-FIT-kld0.02.gguf",
        "base-FIT-5.5GiB.recipe.txt",
        "base-FIT-kld0.02.recipe.txt",
    ]
    assert StageName.IMATRIX in stages


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"quant_types": ["fit:4.5bpw", "fit:4.50bpw"]}, ErrorCode.QUANT_TYPE_DUPLICATE, None),
        ({"quant_types": ["fit:4.5bpw"], "imatrix": "off"}, ErrorCode.IMATRIX_REQUIRED, None),
        ({"fit": {"types": "k+iq"}}, ErrorCode.REQUEST_INVALID, "fit"),
        ({"quant_types": ["fit:4.5bpw"], "fit": {"types": "k+q9"}}, ErrorCode.TENSOR_TYPE_UNKNOWN, None),
        ({"quant_types": ["fit:4.5bpw"], "fit": {"context": 0}}, ErrorCode.REQUEST_INVALID, "fit.context"),
        ({"template": "merge", "recipe": {"pure": True}, "checkpoint": "/c"}, ErrorCode.REQUEST_INVALID, "recipe"),
        ({"recipe": {"tensor_types": ["attn_q=iq1_s"]}, "imatrix": "off"}, ErrorCode.IMATRIX_REQUIRED, None),
    ],
)
def test_rules_of_fits_and_recipes(fields: dict[str, object], code: ErrorCode, field: str | None) -> None:
    with pytest.raises(PackagingError) as caught:
        planned(**fields)
    assert caught.value.code is code
    assert caught.value.fields.get("field") == field


def test_sets_of_types() -> None:
    assert type_set("k") == ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
    assert type_set("K + iq4_xs")[2:4] == ("IQ4_XS", "Q4_K")
    assert set(type_set("all")) == {*type_set("k+iq+legacy")}
    assert type_set("q6_k,f16,q4_k") == ("Q4_K", "Q6_K", "F16")
