"""Jobs as their reader asks for them: what went wrong is explained in the language of ``Accept-Language``."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response

from api_client.console.language import accepted_language
from api_client.contract.job import Attempt, Job, Stage
from api_client.words.language import Language

MayFail = TypeVar("MayFail", Job, Stage, Attempt)


def _reader_language(request: Request, response: Response) -> Language:
    language = accepted_language(request.headers.get("accept-language", ""))
    response.headers.update({"Content-Language": language.value, "Vary": "Accept-Language"})
    return language


ReaderLanguage = Annotated[Language, Depends(_reader_language)]


def told_job(job: Job, language: Language) -> Job:
    """A job whose errors, its stages' and their attempts' too, and reason to wait are told in a language."""
    stages = (
        _told(stage, language).model_copy(update={"attempts": tuple(_told(each, language) for each in stage.attempts)})
        for stage in job.stages
    )
    waiting = job.waiting_for.told(language) if job.waiting_for else None
    return _told(job, language).model_copy(update={"stages": tuple(stages), "waiting_for": waiting})


def _told(record: MayFail, language: Language) -> MayFail:
    failure = record.failure
    return record.model_copy(update={"error": failure.told(language).record()}) if failure else record
