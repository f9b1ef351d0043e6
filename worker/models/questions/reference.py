"""The model as it was trained, in transformers: base and adapter, whole in memory, asked greedily.

Memory: all weights once, in float32 on a CPU, and the cache of one conversation. A model for which half of the
machine's memory is too little is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from api_client.contract.errors import ErrorCode, PackagingError
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.convert.weights import MergedWeights
from worker.models.imatrix.compute import running_model
from worker.models.imatrix.model import LazyTensor, Skeleton, best_device
from worker.stop import ShouldStop, StopRequested

_SHARE = 0.5
_WIDTH = 4
_SEED = 0


def ask_reference(
    base: BaseModel,
    overlay: Overlay | None,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    ends: Sequence[str],
    should_stop: ShouldStop,
) -> list[str]:
    """Answers of the trained model, in the order of the prompts.

    Args:
        base: The base model.
        overlay: The adapter's updates, or None where the base model itself was packaged.
        tokenizer: The packaged one, in transformers; a prompt goes through its chat template, where it has one.
        prompts: What to ask, each on its own.
        max_tokens: Longest answer.
        ends: Texts of tokens that end an answer.
        should_stop: Asked between tokens.

    Raises:
        PackagingError: ``unsupported_architecture`` where transformers cannot run it, or it is too large to hold here;
            ``base_model_invalid``.
        StopRequested: when asked to stop.
    """
    weights = MergedWeights(base, overlay)
    tensors = weights.entries()
    _check_room(base, tensors)
    device = best_device()
    skeleton = Skeleton(base.directory, tensors, device, weights.config_changes())
    skeleton.load("")
    torch.manual_seed(_SEED)
    ids = tokenizer.convert_tokens_to_ids(list(ends)) if ends else []
    stopping = _Stopping(should_stop)
    settings = transformers.GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=ids or None, pad_token_id=ids[0] if ids else 0
    )
    answers = []
    with running_model(type(skeleton.model).__name__), torch.inference_mode():
        for prompt in prompts:
            asked = torch.tensor([prompt_ids(tokenizer, prompt)], device=device)
            said = skeleton.model.generate(
                asked,
                attention_mask=torch.ones_like(asked),
                generation_config=settings,
                stopping_criteria=transformers.StoppingCriteriaList([stopping]),
            )
            if stopping.stopped:
                raise StopRequested
            answers.append(tokenizer.decode(said[0, asked.shape[1] :], skip_special_tokens=True).strip())
    return answers


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a question: a chat's first turn, with the beginning of the answer where the template gives one."""
    if not tokenizer.chat_template:
        plain: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
        return plain
    messages = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


class _Stopping(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Ends an answer where the stage is asked to stop."""

    def __init__(self, should_stop: ShouldStop) -> None:
        self._should_stop = should_stop
        self.stopped = False

    def __call__(self, input_ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.stopped = self.stopped or self._should_stop()
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)


def _check_room(base: BaseModel, tensors: Mapping[str, LazyTensor]) -> None:
    needed = _WIDTH * sum(torch.Size(tensor.shape).numel() for tensor in tensors.values())
    room = int(_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if needed > room:
        raise PackagingError(
            ErrorCode.UNSUPPORTED_ARCHITECTURE,
            f"{base.directory.name} takes {needed / 1e9:.1f} GB in transformers, over half of the machine's memory",
            fields={"needed_bytes": needed, "room_bytes": room},
        )
