"""The READMEs' tables that come from code. ``python -m tests.readme_tables`` (``make docs``) writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from api_client.contract.artifacts import ArtifactKind
from api_client.contract.error_codes import ErrorCode
from api_client.contract.field_types import FieldKind, RequestField
from api_client.contract.field_values import value_at
from api_client.contract.outputs import OUTPUTS
from api_client.contract.quant_types import QUANT_TYPES
from api_client.contract.request import PackagingRequest
from api_client.contract.request_fields import FIELDS
from api_client.contract.stages import StageName
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
        names = (row.flag.name, row.flag.short) if row.flag else ()
        return ", ".join(f"`{name}`" for name in names if name) or "-"

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


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "quant-types": lambda: _quant_types(
            ("type", "bits per weight", "needs an imatrix", "description"), chinese=False
        ),
        "request-fields": lambda: _request_fields(("field", "flag", "default", "what it is"), chinese=False),
        "outputs": lambda: _outputs(("file", "what it is", "when"), chinese=False),
        "error-codes": lambda: _errors(("code", "class", "cause", "remedy"), chinese=False),
    },
    "docs/architecture.md": {"stages": _stages},
    "README.zh-CN.md": {
        "quant-types": lambda: _quant_types(("类型", "每权重比特", "需要重要性矩阵", "说明"), chinese=True),
        "request-fields": lambda: _request_fields(("字段", "参数", "默认", "说明"), chinese=True),
        "outputs": lambda: _outputs(("文件", "内容", "条件"), chinese=True),
        "error-codes": lambda: _errors(("错误码", "类别", "原因", "解决方法"), chinese=True),
    },
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
