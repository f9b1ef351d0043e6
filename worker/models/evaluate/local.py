"""Evaluate files of this machine, without a job: also files that others made of the same model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.quality import REFERENCE, QualityReport
from config.roots import Roots
from worker.models.adapters.adapter import open_adapter
from worker.models.adapters.build import build_overlay
from worker.models.adapters.overlay import Overlay
from worker.models.checkpoint import open_base_model
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.evaluate.arithmetic import Arithmetic
from worker.models.evaluate.report import make_report
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.texts import chosen_text
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.evaluate.variants import QuantizedFile
from worker.setting import Report, WorkSetting
from worker.stop import ShouldStop

_SHARD = re.compile(r"-00001-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class Compared:
    """What the files are compared with, and over what.

    Attributes:
        model: The model's directory; the base model's where ``checkpoint`` or ``file`` is given.
        file: A GGUF file whose matrices are the reference in place of the model's, whole or the first shard; its
            norms and other vectors are taken to be the model's.
        checkpoint: An adapter's directory.
        text: A text file.
        dataset: A data set file; the shipped text where neither is given.
        arithmetic: How products with the files' weights are computed.
    """

    model: Path
    file: Path | None = None
    checkpoint: Path | None = None
    text: Path | None = None
    dataset: Path | None = None
    arithmetic: Arithmetic = Arithmetic.LLAMA_CPP


def evaluate_local(
    paths: Sequence[Path], compared: Compared, budget: Budget, *, report: Report, should_stop: ShouldStop
) -> QualityReport:
    """Compare files with the model they were made from.

    Raises:
        PackagingError: for inputs as in a job; ``gguf_invalid``; as :func:`worker.models.evaluate.run.evaluate_files`.
    """
    anywhere = Roots.anywhere()
    base = open_base_model(compared.model, allowed_roots=anywhere)
    with ExitStack() as stack:
        overlay = None
        adapter_base = None
        if compared.checkpoint is not None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evaluate-")))
            adapter = open_adapter(compared.checkpoint, allowed_roots=anywhere)
            adapter_base = adapter.base_name
            overlay = Overlay.load(build_overlay(adapter, base, scratch / "overlay.safetensors", precision="base").path)
        choice = find_tokenizer(compared.checkpoint, compared.model, adapter_base, allowed_roots=anywhere)
        text = chosen_text(load_tokenizer(choice, base.config), compared.text, compared.dataset)
        files = [QuantizedFile(path.name, shards_of(path), arithmetic=compared.arithmetic) for path in paths]
        for file in files:
            stack.callback(file.close)
        setting = WorkSetting(roots=anywhere, report=report, should_stop=should_stop)
        reference = None
        if compared.file is not None:
            reference = QuantizedFile(REFERENCE, shards_of(compared.file), arithmetic=Arithmetic.EXACT)
            stack.callback(reference.close)
        scores = evaluate_files(base, overlay, files, text.sequences, budget, reference=reference, setting=setting)
        name = compared.model.name + (f" with {compared.checkpoint.name}" if compared.checkpoint is not None else "")
        return make_report(scores, files, text.source, compared.file.name if compared.file is not None else name)


def shards_of(path: Path) -> list[Path]:
    """All shards of a split file, given its first one; the file itself where it is whole."""
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    count, stem = int(match["count"]), path.name[: match.start()]
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
