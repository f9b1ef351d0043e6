"""What workers say about the paths in a form: checkpoints, sizes, room. Asked at once, kept a while, never fatal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from api_client.console.pages.form import NewJobForm
from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.locations import is_remote
from api_client.ledger.questions import Questions, RunAnswer, RunsAnswer, SizesAnswer, SpaceAnswer
from api_client.runs.base_models import base_location

KEPT_S: Final = {"checkpoints": 10.0, "runs": 20.0, "sizes": 300.0, "space": 10.0}
"""How long an answer is used again. Sizes follow from a model's headers, which hardly ever change."""
_MOST_KEPT: Final = 200


@dataclass(frozen=True)
class PathAnswers:
    """Answers, each with the error that stands in its place; both ``None`` where nothing was asked."""

    run: RunAnswer | None = None
    run_error: PackagingError | None = None
    sizes: SizesAnswer | None = None
    sizes_error: PackagingError | None = None
    space: SpaceAnswer | None = None
    space_error: PackagingError | None = None

    @property
    def errors(self) -> tuple[tuple[str, PackagingError], ...]:
        """Every error, with the form's field that it is about."""
        pairs = (("run", self.run_error), ("base_model", self.sizes_error), ("output_dir", self.space_error))
        return tuple((field, error) for field, error in pairs if error is not None)


class Answers:
    """Asks workers and keeps what they answered. Thread-safe; one for the application."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Any]] = {}

    def runs(self, form: NewJobForm, questions: Questions, *, anyone: bool) -> tuple[RunsAnswer | None, bool]:
        """The runs that workers see, where the form is about one, and whether nobody said which there are."""
        if form.source != "run" or not anyone:
            return None, False
        key = ("runs", form.find_run)
        kept: RunsAnswer | None = self._recall(key)
        if kept is not None:
            return kept, False
        try:
            answer = questions.runs(form.find_run)
        except PackagingError:
            return None, True
        self._keep(key, answer)
        return answer, False

    def look(self, form: NewJobForm, questions: Questions, *, anyone: bool) -> PathAnswers:
        """Everything that the page shows about the paths of a form.

        Args:
            form: Its paths.
            questions: The way to the workers.
            anyone: Whether a worker is alive; nobody is asked otherwise.
        """
        run = form.run if form.source != "paths" else ""
        output = form.own_output_dir
        with ThreadPoolExecutor(max_workers=3) as pool:
            listing = pool.submit(self._ask, "checkpoints", run, questions.checkpoints, anyone)
            space = pool.submit(self._ask, "space", "" if is_remote(output) else output, questions.space, anyone)
            base = form.own_base_model or form.told_base_model or base_of(listing.result()[0]) or form.base_model
            sizes = pool.submit(self._ask, "sizes", base, questions.sizes, anyone)
            return PathAnswers(*listing.result(), *sizes.result(), *space.result())

    def _ask(
        self, kind: str, subject: str, question: Callable[[str], Any], anyone: bool
    ) -> tuple[Any, PackagingError | None]:
        if not subject or not (subject.startswith("/") or is_remote(subject)):
            return None, None
        kept = self._recall((kind, subject))
        if kept is not None:
            return kept, None
        if not anyone:
            return None, PackagingError(ErrorCode.QUESTION_UNANSWERED, "no worker is running")
        try:
            answer = question(subject)
        except PackagingError as error:
            return None, error
        if not (isinstance(answer, RunAnswer) and answer.listing.empty_reason):  # whoever mends it looks again at once
            self._keep((kind, subject), answer)
        return answer, None

    def _recall(self, key: tuple[str, str]) -> Any:
        with self._lock:
            until, answer = self._kept.get(key, (0.0, None))
            return answer if self._clock() < until else None

    def _keep(self, key: tuple[str, str], answer: Any) -> None:
        with self._lock:
            while len(self._kept) >= _MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = (self._clock() + KEPT_S[key[0]], answer)


def base_of(run: RunAnswer | None) -> str:
    """The base model that a run names, where it can be a path or a model of the Hub."""
    return base_location((run.base_model if run else None) or "") or ""
