"""What trainers write into ``adapter_config.json`` beside PEFT's own settings: the one table.

Read in the packages of 2026-11: Unsloth 2026.10.9, ms-swift 4.6, Axolotl 0.19, torchtune 0.6, NeMo AutoModel 0.7,
LLaMA-Factory 0.9.5, TRL. The last two, torchtune and NeMo write PEFT's own keys only (NeMo says the rest in a file of
its own, see ``writer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainerKey:
    """One key.

    Attributes:
        trainer: Who writes it.
        does: What it says.
        harmless: The values beside empty ones with which the tensors mean what PEFT says; None for any value.
    """

    trainer: str
    does: str
    harmless: tuple[Any, ...] | None = None

    def allows(self, value: Any) -> bool:
        """Whether the adapter's tensors mean with ``value`` what they would mean without the key."""
        return not value or self.harmless is None or value in self.harmless


TRAINER_KEYS: Mapping[str, TrainerKey] = {
    "unsloth_fixed": TrainerKey("Unsloth", "marks its adapters; read in `writer`"),
    "lora_B_layout": TrainerKey("Unsloth", "orders the columns of B of fused experts; read in `writer`"),
    "unsloth_fused_expert_lora": TrainerKey("Unsloth", "the same, parameter by parameter; read in `writer`"),
    "unsloth_training_method": TrainerKey("Unsloth", "how the studio trained: lora, qlora"),
    "nvfp4_merge_aware": TrainerKey("Axolotl", "the quantizer that the merged weights were trained to survive"),
    "swift_version": TrainerKey("ms-swift", "its version"),
    "swift_type": TrainerKey("ms-swift", "its name of the method", ("LORA",)),
    "model_key_mapping": TrainerKey("ms-swift", "names the layers of a model of its own", ()),
    "lora_dtype": TrainerKey("ms-swift", "what the factors were trained in"),
    "lorap_lr_ratio": TrainerKey("ms-swift", "a learning rate (LoRA+)"),
    "lorap_emb_lr": TrainerKey("ms-swift", "a learning rate (LoRA+)"),
    "use_qa_lora": TrainerKey("ms-swift", "pools the inputs by quantization group", ()),
    "use_merged_linear": TrainerKey("ms-swift", "adapts parts of a fused projection", ()),
    "enable_lora": TrainerKey("ms-swift, early PEFT", "chooses the parts of a fused projection that are adapted", ()),
    "merge_weights": TrainerKey("early PEFT", "whether evaluation merged the weights"),
}
