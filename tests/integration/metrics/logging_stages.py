"""Small stages that log in every way there is."""

from __future__ import annotations

import logging

import structlog

from api_client.contract.job import StageName
from tests.integration import small_stages
from worker.stages.context import StageContext, StageResult

STAGES = dict.fromkeys(StageName, "tests.integration.metrics.logging_stages:run")


def run(context: StageContext) -> StageResult:
    structlog.get_logger("worker.of_tests").info("from structlog", tensor="blk.0", stage="not the real one")
    logging.getLogger("worker.of_tests").debug("at %s", "debug")
    library = logging.getLogger("a.library")
    library.info("not heard: libraries say too much")
    library.warning("a warning of a %s", "library")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        library.exception("an error with a traceback")
    return small_stages.run(context)
