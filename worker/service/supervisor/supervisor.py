"""One attempt of one stage, from its message to its record. The main path goes on in ``watch`` and ``child``."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog
from redis.exceptions import RedisError

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.job import Artifact, StageName
from api_client.contract.outputs import CHECKSUMS, MANIFEST
from api_client.contract.quality import REPORT_FACT, QualityReport
from api_client.ledger.figures import record_figures
from api_client.ledger.keys import Keys
from api_client.ledger.messages import MessageSender
from api_client.ledger.outage import ride_out
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.metrics.observer import Observer
from worker.service.state import decisions
from worker.service.state.decisions import Decision, RetryPolicy, Spent
from worker.service.state.seal import Seal
from worker.service.state.transitions import Begun, Ignored, Instead, Lease, Settled, Taker, Transitions, new_token
from worker.service.supervisor.child import StageStart, as_packaging_error
from worker.service.supervisor.cleaning import Cleaner
from worker.service.supervisor.drain import Drain
from worker.service.supervisor.heart import Heart, Holding
from worker.service.supervisor.process import StageProcess
from worker.service.supervisor.relay import Relay
from worker.service.supervisor.scratch import (
    end_predecessor,
    make_scratch,
    remove_scratch,
    scratch_path,
    scratch_roots,
    sweep_output,
)
from worker.service.supervisor.scratch_lock import LOCK_WAIT_S, acquire, still_used
from worker.service.supervisor.stored import Stored, read_stored
from worker.service.supervisor.upstream import check_upstream, still_whole
from worker.service.supervisor.vetting import disbelieved, may_write, usable_paths
from worker.service.supervisor.watch import Bounds, Ending, Outcome, Watch
from worker.stages.context import StageInput, StageResult
from worker.stages.handover import handed_over

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

_TURNS = 20
"""Jobs that are tried in their turn for one message; those that a cap holds back leave the line."""
REWINDS_MAX = 10
"""Times a job may go back for missing files; beyond that something removes them as fast as they are made."""


@dataclass(frozen=True)
class Identity:
    """Who this worker is."""

    worker: str
    host: str


@dataclass(frozen=True)
class Inputs:
    """Files that an attempt starts from."""

    done: dict[StageName, StageResult]
    previous: StageResult
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a supervisor works with: the parts of the service that it shares, started by whoever owns them.

    Attributes:
        redis: Where jobs are kept.
        transitions: The scripts that change them.
        heart: Renews leases and tells that the worker is alive.
        sender: Sends the message of the next stage.
        context: Starts stage processes.
        drain: Whether the worker is to stop.
        observer: Counts what happens.
        gpus: Devices to give to stage processes in turn; none where there are none.
        seal: Signs what is read back.
    """

    redis: TextRedis
    transitions: Transitions
    heart: Heart
    sender: MessageSender
    context: ForkServerContext
    drain: Drain
    observer: Observer
    gpus: tuple[str, ...]
    seal: Seal


class Supervisor:
    """Runs stages for one worker; one instance, called from every thread of the pool."""

    def __init__(self, settings: Settings, identity: Identity, equipment: Equipment) -> None:
        self._settings = settings
        self._identity = identity
        self._redis = equipment.redis
        self._keys = Keys(settings.key_prefix)
        self._transitions = equipment.transitions
        self._heart = equipment.heart
        self._sender = equipment.sender
        self._context = equipment.context
        self._drain = equipment.drain
        self._observer = equipment.observer
        self._gpus = equipment.gpus
        self._seal = equipment.seal
        self._cleaner = Cleaner(settings, equipment.redis, equipment.transitions)
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(settings.slots):
            self._slots.put(slot)
        self._policy = RetryPolicy.of_stages(settings)
        self._bounds = Bounds(settings.stage_timeout_s, settings.stage_memory_bytes, settings.cancel_grace_s)

    def run_stage(self, job_id: str, stage: StageName, attempt: int) -> str:
        """Run one attempt if it is due.

        Returns:
            What came of it, in a word, for the log.
        """
        if self._drain.requested:
            return "draining"
        for _ in range(_TURNS):
            begun = self._begin(job_id, stage, attempt)
            if not isinstance(begun, Instead):
                return self._run_begun(begun)
            turn = begun.message
            begun = self._begin(turn.job_id, turn.stage, turn.attempt, chosen=True)
            if isinstance(begun, Begun):
                with structlog.contextvars.bound_contextvars(
                    job_id=turn.job_id, stage=turn.stage.value, attempt=turn.attempt
                ):
                    return self._run_begun(begun)
        return "ignored: the turn was others' each time"

    def _begin(self, job_id: str, stage: StageName, attempt: int, *, chosen: bool = False) -> Begun | Ignored | Instead:
        begin = functools.partial(
            self._transitions.begin,
            job_id,
            stage,
            attempt,
            taker=Taker(
                self._identity.worker, self._identity.host, pin=not self._settings.scratch_shared, chosen=chosen
            ),
            limits=self._settings.label_limits,
            token=new_token(attempt),
        )
        # The lease may have been taken although the answer was lost: it must not be left to nobody.
        return ride_out(begin, self._settings.outage_s, lambda: self._drain.requested)

    def _run_begun(self, begun: Begun | Ignored) -> str:
        if isinstance(begun, Ignored):
            _log.debug(LogEvent.MESSAGE_IGNORED, reason=begun.reason)
            return f"ignored: {begun.reason}"
        holding = self._heart.hold(begun.lease)
        self._observer.began(begun.lease)
        try:
            return self._run_holding(begun, holding)
        finally:
            self._heart.let_go(holding)
            self._observer.forget(begun.lease)

    def _run_holding(self, begun: Begun, holding: Holding) -> str:
        _log.info(LogEvent.ATTEMPT_STARTED)
        lease = begun.lease
        stored: Stored | None = None
        try:
            stored = self._read(lease)
            settled, ending = self._run_checked(stored, begun, holding)
        except RedisError as error:
            _log.warning(LogEvent.RESULT_NOT_RECORDED, error=str(error))
            return "redis away"
        except Exception as error:  # A mistake of the supervisor's own must be the job's error, not a silent lease.
            if not isinstance(error, PackagingError):
                _log.exception(LogEvent.SUPERVISOR_FAILED)
            settled, ending = self._failed(lease, as_packaging_error(error), stored), "error"
        if settled is None:
            _log.warning(LogEvent.LEASE_LOST)
            self._observer.lost(lease)
            return "lost"
        self._after(settled, stored)
        _log.info(LogEvent.ATTEMPT_ENDED, ending=ending, job_state=settled.finished)
        return ending

    def _failed(self, lease: Lease, error: PackagingError, stored: Stored | None) -> Settled | None:
        try:
            return self._end(lease, self._after_error(error, stored.counts if stored else Spent()))
        except RedisError as away:
            _log.warning(LogEvent.RESULT_NOT_RECORDED, error=str(away))
            return None

    def _read(self, lease: Lease) -> Stored:
        record = self._ride_out(lambda: self._transitions.read_job(lease.job_id))
        if record is None:
            raise PackagingError(ErrorCode.JOB_NOT_FOUND, f"job {lease.job_id} has expired")
        return read_stored(lease, record, self._seal)

    def _run_checked(self, stored: Stored, begun: Begun, holding: Holding) -> tuple[Settled | None, str]:
        lease, host = begun.lease, self._identity.host
        scratch = self._claim_scratch(stored, lease, holding)
        moved = bool(begun.previous_host) and begun.previous_host != host and not self._settings.scratch_shared
        usable = usable_paths(lease.job_id, stored.request, scratch, self._settings)
        refused = (*stored.unsealed, *disbelieved(stored.job, self._settings))
        if refused:
            _log.warning(LogEvent.RECORD_REFUSED, reset=refused)
        upstream = check_upstream(
            stored.job,
            lease.stage,
            usable=usable,
            refused=refused,
            moved=moved,
            digests=begun.check_artifacts or moved,
            keep_going=holding.keep_going,
        )
        if holding.lost.is_set():
            return None, "lost"
        if holding.cancelled.is_set():
            return self._end(lease, decisions.cancelled(stored.counts)), "cancelled"
        if upstream.reset and stored.rewinds >= REWINDS_MAX:
            raise PackagingError(
                ErrorCode.ARTIFACT_LOST,
                f"files of earlier stages went missing {stored.rewinds} times: {', '.join(upstream.missing)}",
                fields={"missing": list(upstream.missing), "times": stored.rewinds},
            )
        if upstream.reset:
            why = f"Missing: {', '.join(upstream.missing)}" if upstream.missing else f"The job moved to host {host}"
            message = f"{why}; running again: {', '.join(upstream.reset)}"
            _log.warning(LogEvent.UPSTREAM_MISSING, missing=upstream.missing, reset=upstream.reset)
            reset = upstream.reset
            settled = self._ride_out(lambda: self._transitions.rewind(lease, reset, message))
            if settled is not None:
                self._observer.unsuccessful(lease, decisions.handed_back(stored.counts), settled.finished)
            return settled, "rewound"
        previous = still_whole(stored.previous, stored.request.output_dir, holding.keep_going, usable)
        inputs = Inputs(dict(upstream.done), previous, scratch)
        outcome = self._run_process(stored, lease, holding, inputs)
        return self._record(outcome, stored, lease, scratch), outcome.ending.value

    def _claim_scratch(self, stored: Stored, lease: Lease, holding: Holding) -> Path:
        """The job's scratch directory, once nobody else changes it: an older attempt, or the cleaning after an end."""
        scratch = scratch_path(self._settings, lease.job_id, stored.request)
        key = self._keys.scratch(self._identity.host)
        self._ride_out(lambda: self._redis.hset(key, lease.job_id, str(scratch)))
        while True:
            make_scratch(scratch, scratch_roots(self._settings, stored.request))
            # Whoever was cut off since it took the lease may itself be the older attempt by now.
            if not holding.take(self._ride_out(lambda: self._transitions.renew(lease))):
                return scratch
            ended = end_predecessor(scratch)
            if ended:
                _log.warning(LogEvent.PREDECESSOR_ENDED, pid=ended)
            try:
                lock = acquire(scratch, LOCK_WAIT_S, holding.keep_going)
            except FileNotFoundError:
                continue  # Its job had ended, was replayed, and the cleaning got there first: make it anew.
            if lock is not None:
                os.close(lock)
            elif holding.keep_going():
                raise still_used(scratch)
            return scratch

    def _run_process(self, stored: Stored, lease: Lease, holding: Holding, inputs: Inputs) -> Outcome:
        slot = self._slots.get()
        try:
            return self._run_in_slot(slot, stored, lease, holding, inputs)
        finally:
            self._slots.put(slot)

    def _run_in_slot(self, slot: int, stored: Stored, lease: Lease, holding: Holding, inputs: Inputs) -> Outcome:
        relay = Relay(self._transitions, lease, holding.lost.set)
        try:
            start = StageStart(
                told=self._told(stored, lease, inputs),
                registry=self._settings.stage_registry,
                environment={"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {},
                log_level=self._settings.log_level,
                may_write=self._settings.may_write,
            )
            try:
                process = StageProcess(self._context, start, name=f"stage-{lease.stage.value}")
            except (OSError, EOFError) as error:  # The fork server is gone, or the machine is out of processes.
                return Outcome(Ending.CRASHED, death=f"not started: {type(error).__name__}: {error}")
            try:
                confirm = functools.partial(self._confirm, lease, holding)
                used = functools.partial(self._observer.used, lease)
                return Watch(
                    process, holding, relay, self._drain, bounds=self._bounds, confirm=confirm, used=used
                ).run()
            finally:
                process.close()
        finally:
            relay.close(0 if holding.lost.is_set() else self._settings.outage_s, self._gave_up)

    def _told(self, stored: Stored, lease: Lease, inputs: Inputs) -> StageInput:
        return StageInput(
            job_id=lease.job_id,
            stage=lease.stage,
            attempt=lease.attempt,
            request=stored.request,
            options=stored.job.options,
            plan=stored.job.plan,
            done=handed_over(lease.stage, inputs.done),
            previous=inputs.previous,
            scratch=inputs.scratch,
            settings=self._settings.for_stages(),
            retries_left=stored.counts.retries < self._policy.max_retries,
        )

    def _ride_out(self, action: Callable[[], T]) -> T:
        """Run ``action`` through an outage of Redis, as long as the worker may."""
        return ride_out(action, self._settings.outage_s, self._gave_up)

    def _gave_up(self) -> bool:
        return self._drain.impatient

    def _confirm(self, lease: Lease, holding: Holding) -> bool:
        """Whether a stage may do what cannot be undone: only the newest attempt of a job that nobody cancelled."""
        try:
            answer = self._ride_out(lambda: self._transitions.renew(lease))
        except RedisError:
            return False
        return holding.take(answer) and not holding.cancelled.is_set()

    def _record(self, outcome: Outcome, stored: Stored, lease: Lease, scratch: Path) -> Settled | None:
        if outcome.ending is Ending.LOST:
            return None
        if outcome.ending is Ending.RESULT and outcome.answer is not None:
            artifacts = tuple(Artifact.model_validate(item) for item in outcome.answer["artifacts"])
            result = StageResult.read(artifacts, outcome.answer["facts"])
            message = f"{lease.stage.value} finished"
            if lease.attempt > 1 and lease.stage is StageName.PUBLISH:
                # What an attempt left that died with its worker goes before the record: nobody comes back to it after.
                if self._ride_out(lambda: self._transitions.renew(lease)) == "lost":
                    return None
                self._sweep_output(stored, lease)
            settled = self._ride_out(lambda: self._transitions.complete(lease, result, message, stored.record.job))
            if settled is not None:
                self._observer.succeeded(lease, artifacts)
                self._tell_quality(result)
            return settled
        if self._ride_out(lambda: self._transitions.renew(lease)) == "lost":
            return None  # Whatever lies there may be another attempt's by now.
        self._sweep_output(stored, lease)
        if outcome.ending is Ending.CANCELLED:
            remove_scratch(scratch)
        return self._end(lease, self._decide(outcome, stored.counts))

    def _tell_quality(self, result: StageResult) -> None:
        """Count what was measured, and keep it for recommendations; those can do without it."""
        report = QualityReport.read(result.facts.get(REPORT_FACT))
        if report is None:
            return
        self._observer.measured(report)
        with contextlib.suppress(RedisError):
            record_figures(self._redis, self._keys, report)

    def _sweep_output(self, stored: Stored, lease: Lease) -> None:
        if lease.stage is StageName.PUBLISH and may_write(stored.request, self._settings):
            names = {artifact.name for stage in stored.job.stages for artifact in stage.artifacts}
            sweep_output(stored.request.output_dir, names | {MANIFEST.recipe, CHECKSUMS.recipe})

    def _decide(self, outcome: Outcome, counts: Spent) -> Decision:
        if outcome.ending is Ending.CANCELLED:
            return decisions.cancelled(counts)
        if outcome.ending is Ending.HANDED_BACK:
            return decisions.handed_back(counts)
        if outcome.ending is Ending.CRASHED:
            return decisions.after_crash(outcome.death, outcome.last_lines, counts, self._policy)
        error = outcome.error or PackagingError(ErrorCode.INTERNAL_ERROR, "the stage ended without an answer")
        return self._after_error(error, counts)

    def _after_error(self, error: PackagingError, counts: Spent) -> Decision:
        return decisions.after_error(error, counts, self._policy, random.random())

    def _end(self, lease: Lease, decision: Decision) -> Settled | None:
        settled = self._ride_out(lambda: self._transitions.end_attempt(lease, decision))
        if settled is not None:
            self._observer.unsuccessful(lease, decision, settled.finished)
        return settled

    def _after(self, settled: Settled, stored: Stored | None) -> None:
        """What follows a recorded result: the next message, and after the job's end its log and its scratch."""
        if settled.message is not None:
            self._sender.send(settled.message)
        for message in self._due():
            self._sender.send(message)
        if settled.finished is not None:
            self._observer.finished(settled.finished)
        if settled.finished is None or stored is None:
            return
        scratch = scratch_path(self._settings, stored.job.id, stored.request)
        try:
            self._cleaner.clean(stored.job.id, scratch)
        except (OSError, RedisError) as error:
            _log.debug(LogEvent.CLEANING_FAILED, error=str(error))  # The reaper comes again.

    def _due(self) -> list[Any]:
        """Stages that became due by this one's end (a place under a cap is free)."""
        try:
            return list(self._transitions.due())
        except RedisError:
            return []  # The reaper looks for them too.
