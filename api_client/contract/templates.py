"""Templates: named, locked sets of packaging options.

The five built-in ones are part of the contract. A site's own are published to Redis by its workers and have the
same form.
"""

from __future__ import annotations

from typing import Final, Literal, NewType

from pydantic import BaseModel, ConfigDict

from api_client.contract.fit import QuantTypeField
from api_client.contract.quant_types import QuantType

SWITCHES: Final = ("merge_lora", "export_gguf", "quantize", "export_lora")
"""The four on/off options, in the order in which the stages run."""

BuiltinTemplate = Literal["merge_quantize", "merge", "quantize_base", "lora_only", "custom"]
"""The names that type checkers know."""
SiteTemplate = NewType("SiteTemplate", str)
"""The name of a template of one site's own, for type checkers: ``template=SiteTemplate("ours")``."""
DEFAULT_TEMPLATE: Final = "merge_quantize"
CUSTOM_TEMPLATE: Final = "custom"


class Template(BaseModel):
    """One template. ``locked`` templates refuse requests that set a switch themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title_en: str
    title_zh: str
    description_en: str
    description_zh: str
    merge_lora: bool
    export_gguf: bool
    quantize: bool
    export_lora: bool
    quant_types: tuple[QuantTypeField, ...] = ()
    """Quant types made where the request names none."""
    locked: bool = True


BUILTIN_TEMPLATES: Final[dict[str, Template]] = {
    template.name: template
    for template in (
        Template(
            name=DEFAULT_TEMPLATE,
            title_en="Merge and quantize",
            title_zh="合并并量化",
            description_en="Merge the LoRA adapter into the base model, export GGUF, quantize",
            description_zh="合并 LoRA + 导出 GGUF + 量化",
            merge_lora=True,
            export_gguf=True,
            quantize=True,
            export_lora=False,
            quant_types=(QuantType.Q4_K_M,),
        ),
        Template(
            name="merge",
            title_en="Merge without quantizing",
            title_zh="合并不量化",
            description_en="Merge the LoRA adapter and export GGUF at full precision",
            description_zh="合并 LoRA + 导出 GGUF（无量化）",
            merge_lora=True,
            export_gguf=True,
            quantize=False,
            export_lora=False,
        ),
        Template(
            name="quantize_base",
            title_en="Quantize the base model",
            title_zh="仅量化基础模型",
            description_en="Export and quantize a pretrained or fully fine-tuned model, no adapter",
            description_zh="导出 GGUF + 量化（不合并 LoRA）",
            merge_lora=False,
            export_gguf=True,
            quantize=True,
            export_lora=False,
            quant_types=(QuantType.Q4_K_M,),
        ),
        Template(
            name="lora_only",
            title_en="LoRA only",
            title_zh="仅导出 LoRA",
            description_en="Export only the LoRA adapter as GGUF",
            description_zh="仅导出 LoRA 适配器为 GGUF",
            merge_lora=False,
            export_gguf=False,
            quantize=False,
            export_lora=True,
        ),
        Template(
            name=CUSTOM_TEMPLATE,
            title_en="Custom",
            title_zh="自定义",
            description_en="Every switch is free; the defaults are those of merge_quantize",
            description_zh="完全自主控制所有选项",
            merge_lora=True,
            export_gguf=True,
            quantize=True,
            export_lora=False,
            quant_types=(QuantType.Q4_K_M,),
            locked=False,
        ),
    )
}
