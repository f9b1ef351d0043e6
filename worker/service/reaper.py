"""Rescue and housekeeping. Every worker runs this loop; what needs a single hand is done by the one that holds a lock.

A lease counts as run out when its entry has not moved for a whole lease time on this process's monotonic clock, with
Redis answering all the while. Wall clocks, Redis's included, may jump; Redis may be away or paused, and so may this
process: after any such gap the watching starts over. So a rescue comes within two lease times of a death, and a live
attempt is not robbed. A reaper that has only just begun to look need not watch as long. Half a lease time is enough
where the server's clock says that the lease ran out a whole lease time ago: a live holder would have renewed in it,
even after a jump of that clock. Two reapers at once are harmless: a rescue names the token and the lease entry it saw.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from api_client.ledger.keys import Keys
from api_client.ledger.messages import MessageSender, StageMessage, missing_task_ids
from api_client.ledger.outage import is_away
from api_client.ledger.text_redis import TextRedis
from config.log_events import LogEvent
from config.settings import Settings
from worker.service.foreign_keys import ForeignKeys, is_wrong_type
from worker.service.loop import Loop, note_trouble
from worker.service.metrics.observer import Observer
from worker.service.state import decisions
from worker.service.state.decisions import RetryPolicy
from worker.service.state.transitions import Lease, Transitions
from worker.service.supervisor.cleaning import Cleaner
from worker.service.supervisor.vetting import noted_scratch

_log = structlog.stdlib.get_logger(__name__)

_LONGEST_TICK_S = 1.0
_TICKS_PER_LEASE = 4
_SHOWN = 300
"""Characters of a refused text that the log shows."""
_LOCK_TICKS = 4
"""How many rounds a leader may miss before another takes over."""


def run_out(still_s: float, overdue_s: float, lease_s: float) -> bool:
    """Whether a lease counts as run out.

    Args:
        still_s: How long it was seen not to move, by one's own monotonic clock.
        overdue_s: How long ago it ended by the server's clock; negative while it runs.
        lease_s: The lease time.
    """
    return still_s >= lease_s or (overdue_s >= lease_s and still_s >= lease_s / 2)


def attempt_fields(of: Lease | StageMessage) -> dict[str, Any]:
    """What every log event of an attempt carries."""
    return {"job_id": of.job_id, "stage": of.stage.value, "attempt": of.attempt}


class StandStill:
    """Which leases, or heartbeats of hosts, have not moved for how long. Pure but for the times it is given.

    Times are monotonic seconds.

    Args:
        longest_gap_s: A longer time between two looks means that this process or Redis was away: nothing seen before it
            counts any more.
    """

    def __init__(self, longest_gap_s: float) -> None:
        self._longest_gap_s = longest_gap_s
        self._seen: dict[str, tuple[str, float]] = {}
        self._looked_at: float | None = None

    def look(self, now_s: float, entries: dict[str, str]) -> dict[str, float]:
        """Take note of all entries; how long each has been the same."""
        if self._looked_at is not None and now_s - self._looked_at > self._longest_gap_s:
            self._seen.clear()
        self._looked_at = now_s
        self._seen = {
            name: self._seen[name] if self._seen.get(name, ("",))[0] == value else (value, now_s)
            for name, value in entries.items()
        }
        return {name: now_s - since for name, (_, since) in self._seen.items()}


class Reaper:
    """The thread.

    Args:
        settings: This worker's.
        name: Its name, for the lock.
        redis: A connection pool with a short time-out.
        transitions: On the same pool.
        sender: For messages that are due again.
        observer: Is told of rescues and of messages sent again.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        redis: TextRedis,
        transitions: Transitions,
        sender: MessageSender,
        *,
        observer: Observer,
    ) -> None:
        self._settings = settings
        self._name = name
        self._redis = redis
        self._keys = Keys(settings.key_prefix)
        self._transitions = transitions
        self._sender = sender
        self._observer = observer
        self._policy = RetryPolicy.of_stages(settings)
        self._foreign = ForeignKeys(redis, self._keys)
        self._cleaner = Cleaner(settings, redis, transitions)
        tick_s = self._tick_s = min(_LONGEST_TICK_S, settings.lease_s / _TICKS_PER_LEASE, settings.reap_s)
        longest_gap_s = settings.lease_s / 2 + 2 * self._tick_s
        self._leases, self._hosts = StandStill(longest_gap_s), StandStill(longest_gap_s)
        self._swept_at = float("-inf")
        self._loop = Loop("reaper", self._round, tick_s, LogEvent.REAPER_FAILED)

    def start(self) -> None:
        """Start watching."""
        self._loop.start()

    def stop(self) -> None:
        """Stop watching, and let another worker lead."""
        self._loop.stop()
        try:
            if self._redis.get(self._keys.named("reaper")) == self._name:
                self._redis.delete(self._keys.named("reaper"))
        except RedisError as error:
            _log.debug(LogEvent.CLEANING_FAILED, error=str(error))

    def _round(self) -> None:
        try:
            self.tick()
        except RedisError as error:
            if is_wrong_type(error):
                self._foreign.look_everywhere()
            raise

    def tick(self) -> None:
        """One round. What Redis refuses of one step does not keep the others from being done."""
        leads = self._leads()  # First: where Redis takes no writes, holders cannot renew, and nothing seen counts.
        still_s = self._leases.look(time.monotonic(), leases := self._transitions.running())
        silent_s = self._hosts.look(time.monotonic(), hosts := self._transitions.hosts())
        if leads:
            self._alone(self._look_at_the_clock, "clock")
        self._alone(self._send_due, "wake")
        if leads and still_s:
            now_s = self._server_time_s()
            for member, age_s in still_s.items():
                if run_out(age_s, now_s - int(leases[member]) / 1000, self._settings.lease_s):
                    self._alone(functools.partial(self._rescue, member, leases[member]), member)
        if time.monotonic() - self._swept_at >= self._settings.reap_s:
            self._swept_at = time.monotonic()
            self._alone(self._clean_scratch, "scratch")
            if leads:
                self._alone(self._foreign.look, "keys")
                for step, name in ((self._resend, "sent"), (self._forget_silent, "workers"), (self._expire, "expiry")):
                    self._alone(step, name)
                self._alone(functools.partial(self._strand, silent_s, hosts), "hosts")

    def _send_due(self) -> None:
        for message in self._transitions.due():
            self._sender.send(message)

    def _leads(self) -> bool:
        """Whether this worker is the one that reaps now."""
        key, ttl_ms = self._keys.named("reaper"), int(_LOCK_TICKS * self._tick_s * 1000)
        if self._redis.set(key, self._name, nx=True, px=ttl_ms):
            return True
        if self._redis.get(key) != self._name:
            return False
        self._redis.pexpire(key, ttl_ms)
        return True

    def _rescue(self, member: str, lease_until: str) -> None:
        running = self._transitions.running_stage(member, lease_until)
        if running is None:
            self._transitions.forget_running(member)
            return
        decision = decisions.after_rescue(running.worker, running.counts, self._policy)
        try:
            settled = self._transitions.end_attempt(running.lease, decision, lease_until)
        except RedisError as error:
            if is_away(error):
                raise
            self._transitions.forget_running(member)  # Its record cannot be ended: it must not be tried at every tick.
            raise
        if settled is None:
            return  # It moved after all, or another reaper was quicker.
        _log.warning(LogEvent.STAGE_RESCUED, **attempt_fields(running.lease), worker=running.worker, next=decision.next)
        self._observer.rescued(running.lease, decision, settled.finished)
        if settled.message is not None:
            self._sender.send(settled.message)

    def _resend(self) -> None:
        for message in self._lost(self._transitions.overdue(self._settings.requeue_after_s)):
            _log.warning(LogEvent.MESSAGE_RESENT, **attempt_fields(message))
            self._observer.resent()
            self._sender.send(message)

    def _forget_silent(self) -> None:
        silent_ms = int((self._server_time_s() - self._settings.lease_s) * 1000)
        self._redis.zremrangebyscore(self._keys.named("workers"), "-inf", silent_ms)

    def _expire(self) -> None:
        expired = self._transitions.expire()
        if expired:
            _log.info(LogEvent.JOBS_EXPIRED, count=len(expired))

    def _strand(self, silent_s: dict[str, float], hosts: dict[str, str]) -> None:
        """Give up hosts that are silent for a lease time. Judged as leases are: the server's clock may leap."""
        now_s = self._server_time_s()
        for host, age_s in silent_s.items():
            if run_out(age_s, now_s - int(hosts[host]) / 1000 - self._settings.lease_s, self._settings.lease_s):
                messages = self._transitions.strand(host, hosts[host])
                if messages is not None:
                    _log.warning(LogEvent.HOST_GONE, host=host, stages=len(messages))
                for message in messages or ():
                    self._sender.send(message)

    def _look_at_the_clock(self) -> None:
        back_s = self._transitions.set_clock()
        if back_s:
            _log.warning(LogEvent.CLOCK_WENT_BACK, seconds=back_s)

    def _server_time_s(self) -> float:
        seconds, micros = self._redis.time()
        return float(seconds) + float(micros) / 1e6

    def _lost(self, messages: list[StageMessage]) -> list[StageMessage]:
        """Those whose message no longer waits in its queue. So queued jobs never have more than one message there."""
        wanted: dict[str, set[str]] = {}
        for message in messages:
            wanted.setdefault(message.queue, set()).add(message.task_id)
        missing = {queue: missing_task_ids(self._redis, self._keys, queue, ids) for queue, ids in wanted.items()}
        return [message for message in messages if message.task_id in missing[message.queue]]

    def _clean_scratch(self) -> None:
        """Look at every scratch directory on this host: what is not needed any more goes."""
        for job_id, noted in self._redis.hgetall(key := self._keys.scratch(self._settings.host_name)).items():
            path = noted_scratch(self._settings, job_id, noted)
            if path is None:
                _log.warning(LogEvent.SCRATCH_REFUSED, job_id=job_id[:_SHOWN], path=noted[:_SHOWN])
                self._redis.hdel(key, job_id)
                continue
            self._alone(functools.partial(self._cleaner.clean, job_id, path), job_id)

    def _alone(self, action: Callable[[], None], what: str) -> None:
        """Run ``action``; where it meets a record that cannot be read, that must not end the work on all others."""
        try:
            action()
        except Exception as error:
            if isinstance(error, RedisError):
                if is_away(error):
                    raise
                note_trouble(_log, error)
            if is_wrong_type(error):
                self._foreign.look_everywhere()
            _log.exception(LogEvent.REAPER_FAILED, what=what)
