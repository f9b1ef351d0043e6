"""Valid requests at random, for properties: what ``resolve_request`` takes, with anything that a field may hold."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from api_client.contract.errors import PackagingError
from api_client.contract.fit import FitType
from api_client.contract.quant_types import QuantType
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import ResolvedOptions, resolve_options, wants_fit
from api_client.contract.templates import BUILTIN_TEMPLATES, SWITCHES

# Everything but what UTF-8 cannot say; the odd ones are named so that they come up.
_CHARACTERS = st.sampled_from(
    [*" \t\n\r\"'\\=,%&+<>#;:-_/", "\u00a0", "\u2028", "\x7f", "ü", "模", "😀"]
) | st.characters(codec="utf-8", exclude_characters="\0")
_TEXT = st.text(_CHARACTERS, max_size=12)
_PRINTABLE = _TEXT.filter(str.isprintable)
_BLANKS = st.sampled_from([" ", " x=y ", '"', "42"])
_FLAGS = st.booleans()
_FITS = ("fit:5.5GiB", "fit:4.5bpw", "fit:like:IQ4_XS", "fit:target:gpu-8g", "fit:target:6GB", "fit:kld:0.02")


def _path(*schemes: str) -> SearchStrategy[str]:
    local = st.builds("/a{}".format, _TEXT)
    return st.one_of(local, *(st.just(f"{scheme}://some/thing") for scheme in schemes))


def _labels() -> SearchStrategy[dict[str, str]]:
    keys = _PRINTABLE.filter(lambda key: key and "=" not in key)
    return st.dictionaries(st.sampled_from([" a ", '"q"', "run"]) | keys, _BLANKS | _PRINTABLE, max_size=3)


def _names() -> SearchStrategy[str]:
    return _PRINTABLE.filter(lambda name: name and not name.startswith(".") and "/" not in name and "\\" not in name)


def _tasks() -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "task_id": _TEXT,
            "status": st.sampled_from(["completed", "stopped", "failed"]),
            "base_model": _path("s3", "hf"),
            "output_dir": _path("s3"),
        },
        optional={"kind": st.sampled_from(["sft", "pretrain"]), "finetuning": st.sampled_from(["lora", "full"])},
    )


def _imatrix() -> SearchStrategy[Any]:
    compute = st.fixed_dictionaries(
        {"mode": st.just("compute")}, optional={"calibration": _path("s3"), "chunks": st.integers(1, 100_000)}
    )
    return st.sampled_from(["compute", "off"]) | _path("s3").map(lambda path: {"path": path}) | compute


def _recipes() -> SearchStrategy[dict[str, Any]]:
    lines = st.sampled_from(["attn_(q|k)=q8_0", "ffn_{1,2}=f16", "^output\\.weight$=iq4_nl"])
    types = st.sampled_from(["Q8_0", "bf16"])
    return st.fixed_dictionaries(
        {},
        optional={
            "pure": _FLAGS,
            "leave_output_tensor": _FLAGS,
            "output_tensor_type": types,
            "token_embedding_type": types,
            "tensor_types": st.lists(lines, max_size=2),
        },
    )


def _fit_options() -> SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={"types": st.sampled_from(["k+iq", "all", "Q4_K,Q6_K"]), "context": st.integers(1, 10**8)}
    )


@st.composite
def _switches(draw: DrawFn) -> tuple[dict[str, Any], ResolvedOptions]:
    """Template, switches and quant types that go together, and what they come to."""
    template = BUILTIN_TEMPLATES[draw(st.sampled_from(sorted(BUILTIN_TEMPLATES)))]
    data: dict[str, Any] = {"template": template.name}
    if not template.locked:
        data["options"] = draw(st.dictionaries(st.sampled_from(SWITCHES), _FLAGS))
    types = draw(st.none() | st.lists(st.sampled_from([*QuantType, *map(FitType, _FITS)]), unique=True, max_size=4))
    choices: tuple[dict[str, Any], ...] = ({"quant_types": types}, {"quant_types": []}, {})
    for tried in choices:
        try:
            return data | tried, resolve_options(PackagingRequest(**(data | tried)), template)
        except PackagingError:
            continue
    plain: dict[str, Any] = {"template": "merge"}
    return plain, resolve_options(PackagingRequest(**plain), BUILTIN_TEMPLATES["merge"])


def _bounds(*, retention: bool) -> SearchStrategy[dict[str, Any]]:
    """Bounds of quality, which are fractions; only a merge has a training to keep."""
    shares = st.floats(0, 1, exclude_min=True, allow_subnormal=False)
    bounds = {"max_mean_kld": st.floats(0, 100, exclude_min=True, allow_subnormal=False)}
    return st.fixed_dictionaries(
        {"level": st.sampled_from(["quick", "full"])},
        optional=bounds
        | ({"min_retention": shares} if retention else {})
        | {"on_fail": st.sampled_from(["fail", "warn"])},
    )


@st.composite
def requests(draw: DrawFn) -> PackagingRequest:
    """A request that the service takes."""
    data, options = draw(_switches())
    uses_adapter = options.merge_lora or options.export_lora
    task = draw(st.none() | _tasks())
    if task and uses_adapter:
        task["finetuning"] = "lora"
    references = _path("s3") | st.sampled_from(["latest", "best", "checkpoint-9"])
    needed: dict[str, SearchStrategy[Any]] = {"checkpoint": references} if uses_adapter else {}
    paths = {"base_model": _path("s3", "hf"), "output_dir": _path("s3")}
    optional: dict[str, SearchStrategy[Any]] = {
        "model_name": _names(),
        "gguf_dtype": st.sampled_from(["auto", "f32", "f16", "bf16"]),
        "base_precision": st.sampled_from(["stored"] + (["nf4", "nf4_nested"] if options.merge_lora else [])),
        "lattice": st.sampled_from(["off"] + (["auto"] if options.quantize else [])),
        "projector": st.sampled_from(["auto", "off"] + (["f16", "q8_0"] if options.export_gguf else [])),
        "draft_head": st.sampled_from(["auto"] + (["keep", "graft", "drop"] if options.export_gguf else [])),
        "keep_unquantized": _FLAGS,
        "companions": _FLAGS,
        "split_max_size_bytes": st.integers(1_000_000, 10**15),
        "overwrite": _FLAGS,
        "upload": _FLAGS,
        "upload_to": st.sampled_from(["hf://owner/a.name", "oci://registry.test:5000/team/model:v1", "oci://h/m"]),
        "priority": st.integers(0, 9),
        "labels": _labels(),
        "idempotency_key": _TEXT.filter(bool),
        "callback_url": st.just("https://example.org/hook?token=a&b=%20"),
    }
    optional |= {} if uses_adapter else {"checkpoint": references}
    optional |= paths if task else {}
    needed |= {} if task else paths
    optional |= {"imatrix": _imatrix(), "recipe": _recipes()} if options.quantize else {}
    optional |= {"fit": _fit_options()} if wants_fit(PackagingRequest(), options) else {}
    optional |= {"save_merged": _FLAGS} if options.merge_lora else {}
    optional |= {"evaluation": _bounds(retention=options.merge_lora)} if options.export_gguf else {}
    rest = draw(st.fixed_dictionaries(needed, optional=optional))
    if rest.get("imatrix") == "off" and any(quant.startswith(("IQ", "fit:")) for quant in options.quant_types):
        del rest["imatrix"]
    return PackagingRequest(**(data | rest | ({"task": task} if task else {})))
