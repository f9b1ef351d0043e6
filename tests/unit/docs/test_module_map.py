"""The page that maps the module's description: every place exists, and the facts that users know are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from api_client.contract.quant_types import QUANT_TYPES
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import find_template, resolve_options
from api_client.contract.templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "module-map.md"
_PLACE = re.compile(r"`([\w./-]+\.py)(?:::(\w+))?`")


def test_every_place_exists() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 30, "the table was read"
    for row in rows:
        places = _PLACE.findall(row)
        assert len(places) == 2, row
        assert places[1][0].startswith("tests/"), row
        for path, name in places:
            text = (ROOT / path).read_text("utf-8")
            assert not name or re.search(rf"\b{name}\b", text), f"{path} has no {name}"


def test_templates_are_those_that_users_know() -> None:
    known = {
        "merge_quantize": ("合并并量化", True, True, True, False),
        "merge": ("合并不量化", True, True, False, False),
        "quantize_base": ("仅量化基础模型", False, True, True, False),
        "lora_only": ("仅导出 LoRA", False, False, False, True),
        "custom": ("自定义", True, True, True, False),
    }
    for name, (title, *switches) in known.items():
        template = BUILTIN_TEMPLATES[name]
        assert template.title_zh == title
        given = [template.merge_lora, template.export_gguf, template.quantize, template.export_lora]
        assert given == switches
        assert template.locked is (name != "custom")
        options = resolve_options(PackagingRequest.model_validate({"template": name}), find_template(name))
        assert options.quant_types == (("Q4_K_M",) if template.quantize else ())
    assert set(BUILTIN_TEMPLATES) == set(known)
    assert DEFAULT_TEMPLATE == "merge_quantize"


def test_quant_types_are_those_that_users_know() -> None:
    listed = (
        "Q4_K_M Q5_K_M Q4_K_S Q5_K_S Q3_K_M Q3_K_L Q3_K_S Q8_0 Q5_0 Q5_1 Q4_0 Q4_1 Q2_K "
        "IQ4_XS IQ4_NL IQ3_M IQ3_S IQ2_M IQ2_S IQ1_M IQ1_S F32 F16 BF16"
    )
    assert set(listed.split()) <= {kind.value for kind in QUANT_TYPES}
    assert {"Q4_K_M", "Q5_K_M"} <= {kind.value for kind, info in QUANT_TYPES.items() if info.recommended}
