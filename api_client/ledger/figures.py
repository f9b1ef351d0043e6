"""Figures of earlier reports, by architecture: what ``recommend`` tells in place of a class of quality. Workers write.

One list for each architecture, the newest first, of at most :data:`KEPT` entries, gone :data:`KEPT_S` after the last.
What is read is input: entries that are too long or of another form are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api_client.contract.quality import QualityReport
from api_client.contract.quant_types import QuantType
from api_client.contract.recommend import MeasuredType
from api_client.ledger.keys import Keys
from api_client.ledger.text_redis import TextRedis

KEPT = 32
KEPT_S = 180 * 86_400
_ENTRY_BYTES = 32_768
_ARCHITECTURE = re.compile(r"[\w.-]{1,64}")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    files: tuple[MeasuredType, ...] = Field(max_length=64)


def record_figures(redis: TextRedis, keys: Keys, report: QualityReport) -> None:
    """Keep the figures of a report whose model's architecture is known. The oldest entries give way.

    Raises:
        RedisError: as its calls.
    """
    files = [*_measured(report)]
    if not files or _ARCHITECTURE.fullmatch(report.architecture) is None:
        return
    text = _Entry(files=tuple(files)).model_dump_json(exclude_none=True)
    if len(text.encode()) > _ENTRY_BYTES:
        return
    key = keys.figures(report.architecture)
    pipe = redis.pipeline(transaction=True)
    pipe.lpush(key, text)
    pipe.ltrim(key, 0, KEPT - 1)
    pipe.pexpire(key, KEPT_S * 1000)
    pipe.execute()


def read_figures(redis: TextRedis, keys: Keys, architecture: str) -> tuple[MeasuredType, ...]:
    """Figures of files of an architecture, the newest first.

    Raises:
        RedisError: as its calls.
    """
    if _ARCHITECTURE.fullmatch(architecture) is None:
        return ()
    files: list[MeasuredType] = []
    for text in redis.lrange(keys.figures(architecture), 0, KEPT - 1):
        if len(text) <= _ENTRY_BYTES:
            try:
                files += _Entry.model_validate_json(text).files
            except ValidationError:  # of another version, or nobody's
                continue
    return tuple(files)


def _measured(report: QualityReport) -> Iterable[MeasuredType]:
    known = {quant_type.value for quant_type in QuantType}
    for file in report.files[:64]:
        if file.overall is not None and file.quant_type in known:
            yield MeasuredType(
                quant_type=QuantType(file.quant_type),
                model=report.reference[:200],
                size_bytes=file.size_bytes,
                mean_kld=file.overall.mean_kld,
                same_top=file.overall.same_top,
                retention=file.retention,
            )
