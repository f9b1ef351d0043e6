"""What runs say of training in 4 bits, trainer by trainer, and what does not say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.models.rundata.four_bit import FourBitTraining, four_bit_training

CARD = """---
library_name: peft
---
The following `bitsandbytes` quantization config was used during training:
- load_in_8bit: False
- load_in_4bit: True
- bnb_4bit_quant_type: fp4
"""


@pytest.mark.parametrize("name", ["unsloth/llama-3-8b-bnb-4bit", "unsloth/Qwen3-8B-unsloth-bnb-4bit", "/m/x_BNB_4bit"])
def test_by_the_name_of_the_base(name: str) -> None:
    assert four_bit_training(name, []) == FourBitTraining("nf4", "adapter_config.json")


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("training_args.yaml", "quantization_bit: 4\n", "nf4"),
        ("training_args.yaml", "quantization_bit: 4\nquantization_type: fp4\nquantization_method: bnb\n", "fp4"),
        ("llamaboard_config.yaml", "train.quantization_bit: '4'\n", "nf4"),
        ("axolotl_config.yml", "adapter: qlora\nload_in_4bit: true\n", "nf4"),
        ("config.yaml", "quantization_config:\n  load_in_4bit: true\n  bnb_4bit_quant_type: fp4\n", "fp4"),
        ("args.json", '{"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "nf4"}', "nf4"),
        ("README.md", CARD, "fp4"),
    ],
)
def test_by_the_run(file: str, text: str, kind: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (tmp_path / file).write_text(text)
    found = four_bit_training("meta-llama/Llama-3-8B", [checkpoint, tmp_path])
    assert found is not None
    assert (found.kind, found.said_by) == (kind, file)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("training_args.yaml", "quantization_bit: 8\n"),
        ("training_args.yaml", "quantization_bit: 4\nquantization_method: hqq\n"),
        ("axolotl_config.yml", "adapter: lora\nload_in_4bit: false\n"),
        ("args.json", '{"quant_method": "awq", "quant_bits": 4}'),
        ("args.json", "[1]"),
        ("config.yml", "a: [b"),
        ("README.md", CARD.replace("True", "False")),
        ("README.md", "a model in 4 bits"),
    ],
)
def test_what_says_nothing_of_it(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert four_bit_training("meta-llama/Llama-3-8B-4bit-style", [tmp_path]) is None
