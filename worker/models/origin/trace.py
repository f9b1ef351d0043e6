"""All steps from training to the unquantized file, each checked by itself; the first that differs names the fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from api_client.contract.errors import PackagingError
from api_client.contract.quality import OriginStep, StepWord
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import BaseModel
from worker.models.evaluate.arithmetic import Arithmetic
from worker.models.evaluate.merged import MergedModel
from worker.models.evaluate.sequences import TokenSequence, batches
from worker.models.evaluate.side_by_side import SideBySide
from worker.models.evaluate.variants import QuantizedFile, Reference, TensorFile
from worker.models.gguf.metadata import get_value
from worker.models.gguf.reader import open_gguf
from worker.models.imatrix.compute import running_model
from worker.models.origin.prompts import Expected, check_end_token, check_template, check_tokenizer
from worker.models.origin.steps import differs, in_order, not_checked, same
from worker.models.origin.weights import WeightWay
from worker.models.origin.whole_model import NoWitnessError, WholeModel
from worker.models.verify.ask import Question
from worker.models.verify.load import loader_installed, read_prompts
from worker.setting import WorkSetting

QUICK_WEIGHTS = 500_000_000
"""Up to that many, reading all weights twice takes seconds."""
_LOGIT_TOKENS = 256
_SAME_LOG_PROBABILITY = 0.01
"""Mean difference in nats that rounding to 16 bits may make; a fault makes a multiple of it."""


@dataclass(frozen=True)
class Trained:
    """What was trained, as it lies on disk.

    Attributes:
        base: The base model.
        adapter_dir: The adapter's own directory; None where there is none.
        overlay: The adapter as it was merged here.
        tokenizer: The run's tokenizer in transformers.
        beside: Files beside the adapter whose weights were trained, too; PEFT does not read them.
        misread: What of the adapter the installed PEFT takes for something else than who wrote it; empty for nothing.
    """

    base: BaseModel
    adapter_dir: Path | None
    overlay: Overlay | None
    tokenizer: Any
    beside: tuple[str, ...] = ()
    misread: str = ""


@dataclass(frozen=True)
class Unquantized:
    """The unquantized file.

    Attributes:
        name: What it is called, or would be.
        weights: The file, or what reads like one where it is not written.
        asked: A file of the same vocabulary and template that llama.cpp can open.
    """

    name: str
    weights: Path | TensorFile
    asked: Path


def trace(
    trained: Trained,
    unquantized: Unquantized,
    texts: Sequence[str],
    *,
    run_llama_cpp: bool,
    thorough: bool,
    setting: WorkSetting,
) -> tuple[OriginStep, ...]:
    """Check the unquantized file of a model step by step.

    Args:
        trained: What it was made of.
        unquantized: The file.
        texts: Plain texts to cut beside the prompts.
        run_llama_cpp: Load the file in llama.cpp, for prompts and tokens.
        thorough: Compare the weights of a model of any size, not only of one that takes seconds.
        setting: Is asked whether to stop between layers.

    Raises:
        PackagingError: as :class:`~worker.models.imatrix.model.Skeleton`.
    """
    file = QuantizedFile(unquantized.name, [unquantized.weights], arithmetic=Arithmetic.EXACT)
    try:
        prompts = _prompts(trained, unquantized.asked, texts, run_llama_cpp)
        return in_order([*prompts, *_weights(trained, file, texts, thorough, setting)])
    finally:
        file.close()


def _prompts(trained: Trained, path: Path, texts: Sequence[str], run: bool) -> list[OriginStep]:
    with open_gguf(path) as file:
        metadata = {key: get_value(file.metadata, key) for key in file.metadata if key.startswith("tokenizer.")}
    end = check_end_token(trained.tokenizer, metadata)
    steps = (StepWord.TOKENIZER, StepWord.TEMPLATE)
    if not run or not loader_installed():
        return [end, *(not_checked(step, "llama.cpp is not used here") for step in steps)]
    expected = Expected.of(trained.tokenizer, texts)
    question = Question(str(path), max_tokens=1, texts=texts, chats=[case.body() for case, _ in expected.cases])
    try:
        read = read_prompts(question)
    except PackagingError as error:
        return [end, *(not_checked(step, error.message) for step in steps)]
    return [
        end,
        check_tokenizer(trained.tokenizer, expected, read["prompts"], read["text_ids"]),
        check_template(trained.tokenizer, expected, read["prompts"]),
    ]


def _weights(
    trained: Trained, file: QuantizedFile, texts: Sequence[str], thorough: bool, setting: WorkSetting
) -> list[OriginStep]:
    merged = MergedModel.open(trained.base, trained.overlay, setting)
    count = _count(merged)
    if count > QUICK_WEIGHTS and not thorough:
        reason = f"it has {count / 1e9:.2f} billion weights, which only the level full compares"
        return [not_checked(step, reason) for step in (StepWord.MERGE, StepWord.CONVERSION, StepWord.LOGITS)]
    way = WeightWay(merged.skeleton, merged.converter)
    steps = [way.conversion(file)]
    try:
        if trained.base.rounded_as is not None:
            raise NoWitnessError(f"they do not round the base ({trained.base.rounded_as})")
        if trained.beside:
            raise NoWitnessError(f"they do not read {', '.join(trained.beside)}")
        if trained.misread:
            raise NoWitnessError(f"they read {trained.misread} otherwise than who wrote it")
        witness = WholeModel.open(
            trained.base.directory, trained.adapter_dir, _merge_type(merged, trained.overlay), count
        )
    except NoWitnessError as error:
        reason = f"transformers and PEFT cannot be asked: {error}"
        return [*steps, not_checked(StepWord.MERGE, reason), not_checked(StepWord.LOGITS, reason)]
    return [*steps, way.merge(witness.state), _logits(merged, file, witness, trained.tokenizer, texts)]


def _logits(
    merged: MergedModel, file: QuantizedFile, witness: WholeModel, tokenizer: Any, texts: Sequence[str]
) -> OriginStep:
    """The file's weights through the model against the witness, over the beginning of the texts."""
    ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]][:_LOGIT_TOKENS]
    if len(ids) < 2:
        return not_checked(StepWord.LOGITS, "there is no text to run")
    models = SideBySide(merged.skeleton, merged.converter, [Reference(), file])
    with running_model(type(merged.skeleton.model).__name__):
        scores = models.run(batches([TokenSequence("text", tuple(ids), 1)], len(ids)), should_stop=lambda: False)
        off = np.abs(scores[1].log_probability - witness.log_probabilities(ids))
    fact = f"log-probabilities of {len(off)} tokens are {off.mean():.2g} apart on average, {off.max():.2g} at most"
    told = same if off.mean() <= _SAME_LOG_PROBABILITY else differs
    return told(StepWord.LOGITS, fact)


def _merge_type(merged: MergedModel, overlay: Overlay | None) -> torch.dtype:
    """The type in which it was merged here: the base model's own, or a finer one that was asked for."""
    names = overlay.names() if overlay is not None else ()
    tensors = {name: entry for shard in merged.weights.shards().values() for name, entry in shard.items()}
    changed = next((name for name in sorted(names) if name in tensors), None) or next(iter(tensors))
    return tensors[changed].load().dtype


def _count(merged: MergedModel) -> int:
    return sum(parameter.numel() for parameter in merged.skeleton.model.parameters())
