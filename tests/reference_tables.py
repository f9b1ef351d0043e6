"""The documentation's tables that come from code; ``python -m tests.reference_tables`` (``make docs``) writes them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from rich.text import Text

from api_client.cli.app import build_app
from api_client.cli.flags import flag_parameters
from api_client.cli.translate import in_chinese
from api_client.console.settings import ConsoleSettings
from api_client.contract.artifacts import ArtifactKind
from api_client.contract.error_codes import ErrorCode
from api_client.contract.field_types import FieldKind, RequestField
from api_client.contract.field_values import value_at
from api_client.contract.outputs import OUTPUTS, InputNames, planned_outputs
from api_client.contract.quant_types import QUANT_TYPES
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELDS
from api_client.contract.rules import resolve_options
from api_client.contract.stages import StageName
from api_client.contract.templates import BUILTIN_TEMPLATES, DEFAULT_TEMPLATE
from config.settings import Settings
from worker.models.convert.consulted import CONSULTED

ROOT = Path(__file__).resolve().parents[1]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _quant_types(head: Iterable[str], *, chinese: bool) -> str:
    yes, no = ("是", "否") if chinese else ("yes", "no")
    return _table(
        head,
        (
            (
                f"{kind.value}{' ⭐' if info.recommended else ''}",
                f"{info.bits_per_weight:.2f}",
                yes if info.needs_imatrix else no,
                info.description_zh if chinese else info.description_en,
            )
            for kind, info in QUANT_TYPES.items()
        ),
    )


def _request_fields(head: Iterable[str], *, chinese: bool) -> str:
    on, off = ("开", "关") if chinese else ("on", "off")
    whole = PackagingRequest()

    def default(row: RequestField) -> str:
        value = value_at(whole, row.path)
        if row.kind is FieldKind.SWITCH and value is not None:
            return on if value else off
        return f"`{value}`" if isinstance(value, str | int) else "-"

    def flag(row: RequestField) -> str:
        return ", ".join(f"`{name}`" for name in row.flag.names) if row.flag else "-"

    return _table(
        head,
        ((f"`{row.path}`", flag(row), default(row), row.about.zh if chinese else row.about.en) for row in FIELDS),
    )


def _errors(head: Iterable[str], *, chinese: bool) -> str:
    return _table(
        head,
        (
            (
                f"`{code.value}`",
                code.row.error_class.value,
                code.row.cause_zh if chinese else code.row.cause_en,
                code.row.remedy_zh if chinese else code.row.remedy_en,
            )
            for code in ErrorCode
        ),
    )


def _model_files() -> str:
    rows = ((f"`{row.name}`", row.handling.value, row.decides) for row in CONSULTED)
    return _table(("file", "what is done", "what it decides"), rows)


def _outputs(head: Iterable[str], *, chinese: bool) -> str:
    return _table(
        head,
        (
            (
                f"`{spec.recipe}`",
                spec.kind.title_zh if chinese else spec.kind.title_en,
                spec.when_zh if chinese else spec.when_en,
            )
            for spec in OUTPUTS
        ),
    )


def _stages() -> str:
    def kinds(of: Iterable[ArtifactKind]) -> str:
        return ", ".join(kind.value for kind in ArtifactKind if kind in set(of)) or "-"

    rows = (
        (stage.value, stage.spec.title_en, stage.spec.log_kind.value, kinds(stage.spec.reads), kinds(made))
        for stage in StageName
        for made in (stage.spec.makes | stage.spec.may_make,)
    )
    return _table(("stage", "name", "log kind", "is handed", "makes"), rows)


def _templates(head: Iterable[str], *, chinese: bool) -> str:
    on, off = ("开", "关") if chinese else ("on", "off")
    default, custom = ("（默认）", "由开关决定") if chinese else (" (default)", "as the switches say")
    names = InputNames("{model_name}", "{checkpoint_name}")

    def row(name: str) -> Iterator[str]:
        template = BUILTIN_TEMPLATES[name]
        request = PackagingRequest.model_validate({"template": name})
        options = resolve_options(request, template)
        yield f"`{name}`{default if name == DEFAULT_TEMPLATE else ''}"
        yield template.title_zh if chinese else template.title_en
        switches = (template.merge_lora, template.export_gguf, template.quantize, template.export_lora)
        yield from (on if switch else off for switch in switches)
        yield ", ".join(map(str, options.quant_types)) or "-"
        made = [f"`{output.name}`" for output in planned_outputs(request, options, names) if output.kind.is_gguf]
        yield ", ".join(made) if template.locked else custom

    return _table(head, map(row, BUILTIN_TEMPLATES))


def _settings(kind: type[BaseModel], prefix: str) -> str:
    """A setting's default and the text beneath it in the source."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    about: dict[str, str] = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        said = after.value if isinstance(after, ast.Expr) else None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(said, ast.Constant):
            about[node.target.id] = re.sub(r"\s+", " ", str(said.value)).strip()

    def rows() -> Iterator[tuple[str, str, str]]:
        for name, field in kind.model_fields.items():
            default = field.default
            shown = f"`{default}`" if isinstance(default, str | int | float) and default != "" else "-"
            if isinstance(default, bool):
                shown = "on" if default else "off"
            told = about.get(name, name.replace("_", " ").capitalize() + ".").replace("``", "`")
            yield f"`{prefix}{name.upper()}`", shown, told

    return _table(("setting", "default", "what it does"), rows())


_EVERYWHERE = {"--json", "--help"}
"""Flags that every command has."""
_OF_REQUEST = {parameter.name for parameter in flag_parameters()}


def _commands(head: Iterable[str], of_request: str, *, chinese: bool) -> str:
    """Every command with its help, examples, arguments and flags, as the installed command line has them.

    ``of_request`` says what the flags of a request are, where a command has them all.
    """
    told: Callable[[str], str] = in_chinese if chinese else str

    def plain(text: str) -> str:
        return Text.from_markup(told(text)).plain

    def parameters(command: Any) -> Iterator[tuple[str, str]]:
        own = {parameter.name for parameter in command.params}
        shared = _OF_REQUEST if own >= _OF_REQUEST else set()
        for parameter in command.params:
            if parameter.name in shared or _EVERYWHERE & {*parameter.opts}:
                continue
            if parameter.param_type_name == "argument":
                yield f"`{parameter.metavar}`", plain(parameter.help or "")
            else:
                names = "/".join((*parameter.opts, *parameter.secondary_opts))
                value = f" {parameter.metavar}" if parameter.metavar and not parameter.is_flag else ""
                yield f"`{names}{value}`", plain(parameter.help or "")
        if shared:
            yield f"[{of_request}](request{'.zh-CN' if chinese else ''}.md)", ""

    def section(name: str, command: Any) -> Iterator[str]:
        yield f"## trainpack {name}\n\n{plain(command.help or '')}"
        if command.epilog:
            _, *examples = (line.strip() for line in plain(command.epilog).splitlines() if line.strip())
            yield "```text\n" + "\n".join(examples) + "\n```"
        rows = [*parameters(command)]
        if rows:
            yield _table(head, rows)
        for inner, subcommand in getattr(command, "commands", {}).items():
            yield from section(f"{name} {inner}", subcommand)

    group: Any = typer.main.get_command(build_app())
    names = group.list_commands(group.context_class(group))
    return "\n\n".join(part for name in names for part in section(name, group.commands[name]))


_REFERENCE = "docs/reference"
TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "templates": lambda: _templates(
            (
                *("template", "name", "merge_lora", "export_gguf", "quantize", "export_lora"),
                *("quant types", "files"),
            ),
            chinese=False,
        ),
    },
    "README.zh-CN.md": {
        "templates": lambda: _templates(
            ("模板", "名称", "合并 LoRA", "导出 GGUF", "量化", "导出 LoRA", "量化类型", "输出"), chinese=True
        ),
    },
    f"{_REFERENCE}/request.md": {
        "request-fields": lambda: _request_fields(("field", "flag", "default", "what it is"), chinese=False),
    },
    f"{_REFERENCE}/request.zh-CN.md": {
        "request-fields": lambda: _request_fields(("字段", "参数", "默认", "说明"), chinese=True),
    },
    f"{_REFERENCE}/outputs.md": {"outputs": lambda: _outputs(("file", "what it is", "when"), chinese=False)},
    f"{_REFERENCE}/outputs.zh-CN.md": {"outputs": lambda: _outputs(("文件", "内容", "条件"), chinese=True)},
    f"{_REFERENCE}/quant-types.md": {
        "quant-types": lambda: _quant_types(
            ("type", "bits per weight", "needs an imatrix", "description"), chinese=False
        ),
    },
    f"{_REFERENCE}/quant-types.zh-CN.md": {
        "quant-types": lambda: _quant_types(("类型", "每权重比特", "需要重要性矩阵", "说明"), chinese=True),
    },
    f"{_REFERENCE}/errors.md": {
        "error-codes": lambda: _errors(("code", "class", "cause", "remedy"), chinese=False),
    },
    f"{_REFERENCE}/errors.zh-CN.md": {
        "error-codes": lambda: _errors(("错误码", "类别", "原因", "解决方法"), chinese=True),
    },
    f"{_REFERENCE}/commands.md": {
        "commands": lambda: _commands(
            ("argument or flag", "what it does"), "and the flags of a request", chinese=False
        ),
    },
    f"{_REFERENCE}/commands.zh-CN.md": {
        "commands": lambda: _commands(("参数", "说明"), "以及请求的全部参数", chinese=True),
    },
    f"{_REFERENCE}/settings.md": {
        "settings": lambda: _settings(Settings, "TRAINPACK_"),
        "console-settings": lambda: _settings(ConsoleSettings, "TRAINPACK_CONSOLE_"),
    },
    "docs/architecture.md": {"stages": _stages},
    "docs/model-files.md": {"model-files": _model_files},
}


def updated(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The text with every marked table replaced by what the code says."""
    for name, make in tables.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}{make()}{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    for file, tables in TABLES.items():
        path = ROOT / file
        path.write_text(updated(path.read_text("utf-8"), tables), "utf-8")
