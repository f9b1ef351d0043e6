"""Jobs as their reader asks for them: what went wrong is explained in the language of ``Accept-Language``."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import Depends, Request, Response

from api_client.console.language import accepted_language
from api_client.contract.events import Event
from api_client.contract.job import Attempt, Job, Stage
from api_client.words.language import Language
from api_client.words.log_messages import log_message

MayFail = TypeVar("MayFail", Job, Stage, Attempt)


def _reader_language(request: Request, response: Response) -> Language:
    language = accepted_language(request.headers.get("accept-language", ""))
    response.headers.update({"Content-Language": language.value, "Vary": "Accept-Language"})
    return language


ReaderLanguage = Annotated[Language, Depends(_reader_language)]


def told_job(job: Job, language: Language) -> Job:
    """A job whose errors, its stages' and their attempts' too, and reason to wait are told in a language."""
    stages = (
        _told(stage, language).model_copy(
            update={"attempts": tuple(_told(attempt, language) for attempt in stage.attempts)}
        )
        for stage in job.stages
    )
    waiting = job.waiting_for.told(language) if job.waiting_for else None
    return _told(job, language).model_copy(update={"stages": tuple(stages), "waiting_for": waiting})


def told_event(event: Event, language: Language) -> Event:
    """An entry of a log with its message in a language, as far as it is known there."""
    message = log_message(language, event.message)
    return event if message == event.message else event.model_copy(update={"message": message})


def _told(record: MayFail, language: Language) -> MayFail:
    failure = record.failure
    return record.model_copy(update={"error": failure.told(language).record()}) if failure else record
