"""The page that maps the module's description: every place exists, and the facts that users know are the code's."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from api_client.cli.app import build_app
from api_client.contract.presets import SCENARIOS
from api_client.contract.quant_types import QUANT_TYPES
from api_client.contract.recommend import TARGETS
from api_client.contract.request import PackagingRequest
from api_client.contract.rules import find_template, resolve_options
from api_client.contract.templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "module-map.md"
HEADINGS = "概述 配置模板（推荐） 基础配置参数 打包选项详解 选项依赖关系 打包流程 打包日志 常见问题 使用建议"
"""Those of the description that say something of the module."""
_ROW = re.compile(r"\| (.+) \| (.+) \| `([\w./-]+\.py)(?:::(\w+))?` \| `(tests/[\w/]+\.py)::(test_\w+)` \|")


def rows() -> list[str]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| statement", "| ---"))]


@functools.cache
def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(build_app())
    return dict(group.commands)


@functools.cache
def flags() -> set[str]:
    options = (parameter for command in commands().values() for parameter in command.params)
    return {name for option in options for name in (*option.opts, *option.secondary_opts)}


def names_in(file: str) -> Iterator[str]:
    """What a module defines: functions, classes, attributes of classes, and what is assigned."""
    for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_no_heading_is_left_out() -> None:
    assert re.findall(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE) == HEADINGS.split()
    assert len(rows()) > 50, "the tables were read"


@pytest.mark.parametrize("row", rows())
def test_every_place_exists(row: str) -> None:
    read = _ROW.fullmatch(row)
    assert read is not None, row
    _, met, code, name, test_file, test = read.groups()
    if met.startswith("["):
        target, _, _ = re.fullmatch(r"\[.+\]\((.+?)(#.+)?\)()", met).groups()  # type: ignore[union-attr]
        assert (PAGE.parent / target).exists(), met  # its section: tests/unit/docs/test_docs_facts.py
    elif met.startswith("`trainpack "):
        assert met.strip("`").split()[1] in commands()
    else:
        assert met.strip("`") in flags()
    if name == "keep_unquantized":
        assert f'"{name}"' in (ROOT / code).read_text("utf-8")
    elif name is not None:
        assert name in names_in(code), f"{code} has no {name}"
    else:
        assert (ROOT / code).is_file()
    assert test in names_in(test_file), f"{test_file} has no {test}"


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


def test_scenarios_and_platforms_are_those_that_users_know() -> None:
    scenarios = {
        "通用部署": "Q4_K_M",
        "追求质量": "Q5_K_M Q8_0",
        "内存受限": "Q3_K_M IQ3_M",
        "极限压缩": "Q2_K IQ2_S",
        "多版本分发": "Q4_K_M Q5_K_M Q8_0",
    }
    assert {preset.title.zh: " ".join(preset.quant_types) for preset in SCENARIOS.values()} == scenarios
    platforms = {
        "gpu-24g": "F16 Q8_0",
        "gpu-12g": "Q5_K_M",
        "gpu-8g": "Q4_K_M",
        "cpu": "Q4_K_M Q3_K_M",
        "mobile": "IQ3_M IQ2_S",
    }
    assert {name: " ".join(types) for name, (_, types) in TARGETS.items()} == platforms
