"""The tuned model as transformers and PEFT make it, whole in memory: the witness.

Memory: the model in its own type, and once more in float32 while it runs. Where that is more than half of what is free
it is not opened, and the report says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from worker.models.hardening import locked_down

_SHARE_OF_FREE_MEMORY = 0.5
_FLOAT32_BYTES = 4


class NoWitnessError(Exception):
    """transformers and PEFT cannot be asked here; the message says why."""


class WholeModel:
    """A model whose adapter PEFT has merged.

    Attributes:
        state: Parameter name -> values in the model's own type.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.state: Mapping[str, torch.Tensor] = model.state_dict()

    @classmethod
    def open(cls, base: Path, adapter: Path | None, dtype: torch.dtype, weight_count: int) -> WholeModel:
        """Load and merge; no code of the model's directory is run and nothing is fetched.

        Args:
            base: Directory of the base model, safetensors.
            adapter: Directory of the adapter with ``adapter_model.safetensors``; None where there is none.
            dtype: Type to merge in.
            weight_count: Number of the base model's weights.

        Raises:
            NoWitnessError: too little memory, or transformers or PEFT does not take the model or the adapter whole.
        """
        needed = weight_count * (dtype.itemsize + _FLOAT32_BYTES)
        free = psutil.virtual_memory().available
        if needed > _SHARE_OF_FREE_MEMORY * free:
            raise NoWitnessError(f"it takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
        if adapter is not None and not (adapter / "adapter_model.safetensors").is_file():
            raise NoWitnessError("the adapter is in a form that PEFT does not read")
        try:
            with locked_down(weights_from=base), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return cls(_loaded(base, adapter, dtype))
        except NoWitnessError:
            raise
        except Exception as error:  # whatever transformers or PEFT raise for what they cannot take says nothing of ours
            raise NoWitnessError(f"{type(error).__name__}: {str(error)[:200]}") from error

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Of each token that really follows, by the model's own forward in float32; ``(len(ids) - 1,)``."""
        with torch.no_grad():
            logits = self._model.float()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
            chosen = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        values: NDArray[np.float32] = chosen.numpy()
        return values


def _loaded(base: Path, adapter: Path | None, dtype: torch.dtype) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        base, config=config, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    if adapter is not None:
        from peft import PeftModel

        tuned = PeftModel.from_pretrained(model, str(adapter))
        # the same weights once more: opening a model warns of the names that it lacks and not of those left over
        taken = tuned.load_adapter(str(adapter), "default")
        if left := [*taken.missing_keys, *taken.unexpected_keys]:
            raise NoWitnessError(f"PEFT takes only part of the adapter: not {left[0][:200]}, and {len(left) - 1} more")
        model = tuned.merge_and_unload()
    return model.eval()
