"""Who wrote an adapter of fused experts, and what its bytes mean therefore: shapes do not say it.

Two things changed over the years for LoRA on a stack of experts (``target_parameters``):

- Which axis A reads. PEFT up to 0.18 took a parameter (e, p, q) for (e, in, out) whatever the layer; 0.19.0 turned that
  round for layers that say ``is_transposed``, 0.19.1 for those that do not, which is right (huggingface/peft#3165).
  ``peft_version`` in ``adapter_config.json`` says which (written since 0.18.0); NeMo AutoModel says it as
  ``paramwrapper_layout`` in ``automodel_peft_config.json``. Only a square expert leaves the choice open.
- The order of B's columns. PEFT's expert index is the inner one (``rank_major``). Unsloth trained the models below with
  the expert as the outer index (``grouped_by_expert``) until 2026.9.6, and has written which it is since
  (unslothai/unsloth-zoo#1232, #1269): ``lora_B_layout``, and ``unsloth_fused_expert_lora`` parameter by parameter. An
  adapter of Unsloth's without these keys is older. No shape ever tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from api_client.contract.errors import ErrorCode, PackagingError

NEMO_CONFIG = "automodel_peft_config.json"
_NEMO_LAYOUTS = {"peft-0.18": (0, 18, 0), "peft-0.19.1": (0, 19, 1)}
_LAYOUT_OF_TODAY = (0, 19, 1)
_DETAIL, _FLAT, _MARK = "unsloth_fused_expert_lora", "lora_B_layout", "unsloth_fixed"
# transformers' packages whose experts Unsloth trained by a forward pass of its own before 2026.9.6
_GROUPED_BEFORE = frozenset({
    "deepseek_v3", "ernie4_5_moe", "ernie4_5_vl_moe", "gemma4", "glm4_moe", "glm4_moe_lite", "gpt_oss", "lfm2_moe",
    "mixtral", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe",
})  # fmt: skip
_OF_UNSLOTH = frozenset({"gate_up_proj", "down_proj"})  # the parameters that it trains by that pass


class ColumnOrder(StrEnum):
    """Order of the columns of B, by Unsloth's names for it."""

    RANK_MAJOR = "rank_major"
    GROUPED_BY_EXPERT = "grouped_by_expert"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who wrote an adapter.

    Attributes:
        peft: Version of the PEFT whose layout it has; None where nothing says so, or a development version on the
            border of two layouts.
        orders: Parameter -> order of its B, as the adapter says; the empty name is any parameter.
        unsloth: Unsloth wrote it.
    """

    peft: tuple[int, int, int] | None = None
    orders: Mapping[str, str] = field(default_factory=dict)
    unsloth: bool = False

    def reads_first_axis(self, in_out: bool) -> bool | None:
        """Whether A reads the first of a parameter's last two axes.

        Args:
            in_out: The layer stores its experts (in, out).

        Returns:
            None where nothing says so.
        """
        if self.peft is None:
            # an older PEFT, which has no version to write, and today's agree on such a layer
            return True if in_out else None
        if self.peft < (0, 19, 0):
            return True
        return not in_out if self.peft == (0, 19, 0) else in_out

    def column_order(self, parameter: str, family: str, where: str) -> tuple[ColumnOrder, bool]:
        """Order of the columns of a parameter's B, and whether the adapter says it itself.

        Args:
            parameter: Last component of the parameter's name.
            family: transformers' package of the model, e.g. ``qwen3_moe``.
            where: Named in the message.

        Raises:
            PackagingError: ``adapter_unsupported`` for an order that is none.
        """
        said = self.orders.get(parameter, self.orders.get("") if parameter in _OF_UNSLOTH else None)
        if said is not None:
            try:
                return ColumnOrder(said), True
            except ValueError as error:
                raise _no_order(parameter, said, where) from error
        if self.orders or not self.unsloth:
            return ColumnOrder.RANK_MAJOR, True
        grouped = family in _GROUPED_BEFORE and parameter in _OF_UNSLOTH
        return (ColumnOrder.GROUPED_BY_EXPERT if grouped else ColumnOrder.RANK_MAJOR), False


def misread_by_installed(config: Mapping[str, Any], writer: Writer) -> str:
    """What of an adapter the installed PEFT, which knows nothing of writers, may read otherwise; empty for nothing.

    Args:
        config: ``adapter_config.json``.
        writer: Who wrote it.
    """
    if not config.get("target_parameters"):
        return ""
    if writer.peft is not None and writer.peft < _LAYOUT_OF_TODAY:
        return f"experts in the layout of PEFT {'.'.join(map(str, writer.peft))}"
    grouped = any(order != ColumnOrder.RANK_MAJOR for order in writer.orders.values())
    return "experts in Unsloth's order" if grouped or (writer.unsloth and not writer.orders) else ""


def read_writer(config: Mapping[str, Any], nemo: Mapping[str, Any], where: str) -> Writer:
    """Who wrote an adapter.

    Args:
        config: ``adapter_config.json``.
        nemo: ``automodel_peft_config.json``, empty where there is none.
        where: Named in messages.

    Raises:
        PackagingError: ``adapter_unsupported`` for a layout of NeMo's that is not known.
    """
    layout = nemo.get("paramwrapper_layout")
    if layout is not None and str(layout) not in _NEMO_LAYOUTS:
        raise PackagingError(
            ErrorCode.ADAPTER_UNSUPPORTED,
            f"{where}: {NEMO_CONFIG} says paramwrapper_layout {str(layout)[:80]!r}; known are "
            f"{', '.join(_NEMO_LAYOUTS)}",
            remedy="Export the adapter again with legacy_paramwrapper_layout off.",
            fields={"feature": "paramwrapper_layout"},
        )
    mapping = config.get("auto_mapping")
    sources = [config, mapping if isinstance(mapping, dict) else {}]
    declared = (orders for source in sources if (orders := _orders(source)))
    return Writer(
        peft=_peft_version(config.get("peft_version")) if layout is None else _NEMO_LAYOUTS[str(layout)],
        orders=next(declared, {}),
        unsloth=any(source.get(_MARK) for source in sources),
    )


def _orders(source: Mapping[str, Any]) -> dict[str, str]:
    detail = source.get(_DETAIL)
    parameters = detail.get("parameters") if isinstance(detail, dict) else None
    if isinstance(parameters, dict):
        return {
            str(name): str(parameter.get(_FLAT))
            for name, parameter in parameters.items()
            if isinstance(parameter, dict)
        }
    return {"": str(source[_FLAT])} if source.get(_FLAT) else {}


def _peft_version(value: Any) -> tuple[int, int, int] | None:
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(.*)", value) if isinstance(value, str) else None
    if match is None:
        return None
    version = (int(match[1]), int(match[2]), int(match[3]))
    return None if "dev" in match[4] and version in ((0, 19, 0), (0, 19, 1)) else version


def _no_order(parameter: str, said: str, where: str) -> PackagingError:
    return PackagingError(
        ErrorCode.ADAPTER_UNSUPPORTED,
        f"{where}: the columns of B of {parameter} are in the order {said[:80]!r}; known are rank_major (column "
        f"j * experts + e, as PEFT has it) and grouped_by_expert (column e * rank + j)",
        remedy=f"Write the order that the adapter was trained in as {_FLAT} into adapter_config.json.",
        fields={"feature": _FLAT, "parameter": parameter},
    )
