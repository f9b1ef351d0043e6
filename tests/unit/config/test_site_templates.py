"""A site's own templates: read, checked, and told apart from what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.quant_types import QuantType
from config.site_templates import load_site_templates

KEYS = {
    "title_en": '"Edge"',
    "title_zh": '"边缘"',
    "description_en": '"For devices"',
    "description_zh": '"用于设备"',
    "merge_lora": "true",
    "export_gguf": "true",
    "quantize": "true",
    "export_lora": "false",
    "quant_types": '["IQ4_XS"]',
}


def written(path: Path, table: str = "edge", **changes: str | None) -> Path:
    lines = [f"{key} = {value}" for key, value in (KEYS | changes).items() if value is not None]
    path.write_text("\n".join([f"[{table}]", *lines]), "utf-8")
    return path


def test_a_template_is_read_and_locked(tmp_path: Path) -> None:
    [template] = load_site_templates(written(tmp_path / "templates.toml")).values()
    assert (template.name, template.title_zh, template.locked) == ("edge", "边缘", True)
    assert template.quant_types == (QuantType.IQ4_XS,)


def test_the_shipped_file_has_none() -> None:
    assert load_site_templates(None) == {}


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"title_en": None}, "title_en: Field required"),
        ({"title_zh": None, "titel_zh": '"边缘"'}, "unknown key 'titel_zh'; did you mean 'title_zh'?"),
        ({"quant_types": '["IQ4XS"]'}, "unknown quant type 'IQ4XS'; did you mean IQ4_XS?"),
        ({"quant_types": "[]"}, "quant_types is empty"),
        ({"quant_types": '["Q8_0", "Q8_0"]'}, "named more than once"),
        ({"export_gguf": "false"}, "quantize is on and export_gguf is off"),
        ({"export_lora": "true"}, "exclude each other"),
        ({"table": "merge"}, "has the name of a built-in template"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_template(
    tmp_path: Path, changes: dict[str, Any], fact: str
) -> None:
    path = written(tmp_path / "templates.toml", **changes)
    with pytest.raises(PackagingError) as refused:
        load_site_templates(path)
    assert refused.value.code is ErrorCode.SETTINGS_INVALID
    assert f"{path}: [{changes.get('table', 'edge')}] " in refused.value.message
    assert fact in refused.value.message


@pytest.mark.parametrize("content", [b"[edge\n", b"\xff", b"edge = 1\n", None])
def test_a_file_that_cannot_be_read_as_templates_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "templates.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PackagingError, match=r"templates\.toml") as refused:
        load_site_templates(path)
    assert refused.value.code is ErrorCode.SETTINGS_INVALID
