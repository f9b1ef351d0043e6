"""From scores to the report that is published beside the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from api_client.contract.quality import BASE, FileQuality, QualityReport, TextSource
from worker.models.evaluate.figures import by_part, figures, measurable, perplexity, retention
from worker.models.evaluate.run import Scores
from worker.models.evaluate.variants import QuantizedFile


def make_report(scores: Scores, files: Sequence[QuantizedFile], source: TextSource, reference: str) -> QualityReport:
    """The report of one evaluation.

    Args:
        scores: Of all models.
        files: The files, in the order in which they are listed.
        source: What was run.
        reference: What the files were compared with, in words.
    """
    base = scores.others.get(BASE)
    training = figures(scores.reference, base) if base is not None else None
    return QualityReport(
        reference=reference,
        source=source,
        tokens=scores.tokens,
        scored=dict(Counter(scores.parts)),
        seconds=round(scores.seconds, 3),
        perplexity=perplexity(scores.reference),
        training=training,
        training_measurable=training is not None and measurable(training.mean_kld),
        files=tuple(_file(scores, file) for file in files),
    )


def _file(scores: Scores, file: QuantizedFile) -> FileQuality:
    own = scores.others.get(file.name)
    base = scores.others.get(BASE)
    return FileQuality(
        name=file.name,
        size_bytes=file.size_bytes,
        bits_per_weight=round(file.bits_per_weight, 4),
        quant_type=file.quant_type,
        arithmetic=file.arithmetic,
        overall=figures(scores.reference, own) if own is not None else None,
        parts=by_part(scores.reference, own, scores.parts) if own is not None else {},
        retention=retention(own, base) if own is not None and base is not None else None,
        not_judged=scores.refused.get(file.name),
    )
