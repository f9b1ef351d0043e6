"""Whether an adapter was trained on a base model in 4 bits, by what its run says in text.

===================================== ===========================================================================
said by                               in
===================================== ===========================================================================
the name of the base model            ``adapter_config.json``: ``unsloth/llama-3-8b-bnb-4bit``
LLaMA-Factory                         ``training_args.yaml``: ``quantization_bit: 4``, ``quantization_type``
Axolotl, and whoever uses its keys    ``axolotl_config.yml``, ``config.yml``: ``load_in_4bit``, ``adapter: qlora``
ms-swift                              ``args.json``: ``quant_bits: 4``, ``bnb_4bit_quant_type``
the model card of older PEFT          ``README.md``: ``- load_in_4bit: True``, ``- bnb_4bit_quant_type: nf4``
===================================== ===========================================================================

``training_args.bin`` would say it, too; it is a pickle and is never opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from api_client.runs.kinds import ADAPTER_CONFIG
from worker.models.rundata.text_files import json_values, small_text, yaml_values

FourBitType = Literal["nf4", "fp4"]
_NAMED = re.compile(r"bnb[-_]4bit", re.IGNORECASE)
_NOTES = (
    "args.json", "training_args.yaml", "llamaboard_config.yaml", "axolotl_config.yml", "axolotl_config.yaml",
    "config.yml", "config.yaml",
)  # fmt: skip
_CARD = "README.md"
_CARD_LINE = re.compile(r"^\s*-\s*(load_in_4bit|bnb_4bit_quant_type)\s*:\s*(\w+)\s*$", re.MULTILINE)
_BITS = ("quantization_bit", "quant_bits")
_TYPES = ("bnb_4bit_quant_type", "quantization_type")
# methods of LLaMA-Factory and ms-swift that quantize while the model is loaded; others load what somebody quantized
_ON_THE_FLY = (None, "bnb", "bitsandbytes")


@dataclass(frozen=True)
class FourBitTraining:
    """An adapter that was trained on 4-bit weights.

    Attributes:
        kind: Type of the weights; ``nf4``, every trainer's default, where only the bits are said.
        said_by: Name of the file that says so.
    """

    kind: FourBitType
    said_by: str


def four_bit_training(adapter_base: str, directories: Sequence[Path]) -> FourBitTraining | None:
    """What the adapter and its run say; None where they say nothing of 4 bits.

    Args:
        adapter_base: ``base_model_name_or_path`` of the adapter.
        directories: The adapter's, then its run's.
    """
    if _NAMED.search(adapter_base):
        return FourBitTraining("nf4", ADAPTER_CONFIG)
    for directory in directories:
        for name, values in _notes(directory):
            if _says_four_bits(values):
                fp4 = any(values.get(key) == "fp4" for key in _TYPES)
                return FourBitTraining("fp4" if fp4 else "nf4", name)
    return None


def _notes(directory: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in _NOTES:
        text = small_text(directory / name)
        if text is not None:
            values = json_values(text) if name.endswith(".json") else yaml_values(text)
            values = {key.removeprefix("train."): value for key, value in values.items()}  # of LLaMA-Factory's page
            nested = values.get("quantization_config")
            yield name, {**values, **(nested if isinstance(nested, dict) else {})}
    card = small_text(directory / _CARD)
    if card is not None:
        lines = dict(_CARD_LINE.findall(card))
        yield _CARD, {**lines, "load_in_4bit": lines.get("load_in_4bit") == "True"}


def _says_four_bits(values: Mapping[str, Any]) -> bool:
    if values.get("load_in_4bit") is True or values.get("adapter") == "qlora":
        return True
    bits = any(str(values.get(key)) == "4" for key in _BITS)
    return bits and values.get("quantization_method", values.get("quant_method")) in _ON_THE_FLY
