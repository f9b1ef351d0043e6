"""One interleaving of everything that may happen to a few jobs, on the real scripts and a real server.

Clocks are the walk's own, so that leases and delays run out when it says. After every step ``check.lua`` looks at every
record and index. Whoever calls with a token that is not the stage's must change nothing; a call said again must be
answered as before while nothing has come between; and at the end every job that was left has to come to its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

PREFIX = "m"
PLAN = ("prepare", "convert", "publish")
JOBS = ("20261130-000000-aaaaaa", "20261130-000000-bbbbbb", "20261130-000001-cccccc")
HOSTS = ("h1", "h2")
LEASE_MS = 1000
TTL_MS = 5000
_START_MS = 1_790_000_000_000
_TIME = "local clock = redis.call('TIME')\n"
_FAKE_TIME = (
    "local faked = tonumber(redis.call('GET', 'time'))\nlocal clock = {math.floor(faked / 1000), faked % 1000 * 1000}\n"
)
_CLIENT = ("submit", "cancel", "replay", "set_limit", "set_pause", "set_fairness")
_WORKER = ("begin", "renew", "relay", "complete", "end_attempt", "rewind", "due", "overdue", "strand", "expire")
ROUNDS_TO_END = 60


class Broken(AssertionError):
    """An invariant that a walk found not to hold."""


@dataclass(frozen=True)
class Token:
    """What one attempt was given."""

    job: str
    stage: str
    attempt: int
    text: str


class Scripts:
    """The scripts on one server, with the walk's clock in place of the server's.

    Args:
        url: The server, which is emptied again and again.
        spoilt: Scripts with a mistake put in: by name, what is replaced and by what.
    """

    def __init__(self, url: str, spoilt: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> None:
        self._redis: Any = Redis.from_url(url, decode_responses=True)
        prelude = files("api_client.ledger.lua").joinpath("prelude.lua").read_text("utf-8")
        assert prelude.count(_TIME) == 1
        prelude = prelude.replace(_TIME, _FAKE_TIME)
        texts = {name: files("api_client.ledger.lua").joinpath(f"{name}.lua").read_text("utf-8") for name in _CLIENT}
        texts |= {
            name: files("worker.service.state.lua").joinpath(f"{name}.lua").read_text("utf-8") for name in _WORKER
        }
        texts["check"] = Path(__file__).with_name("check.lua").read_text("utf-8")
        for name, (old, new) in spoilt.items():
            assert texts[name].count(old) == 1, (name, old)
            texts[name] = texts[name].replace(old, new)
        self._shas = {name: self._redis.script_load(f"{prelude}\n{text}") for name, text in texts.items()}
        self._connection: Any = self._redis.connection_pool.get_connection()

    def begin(self) -> None:
        """Forget everything."""
        self._ask([("FLUSHDB",), ("SET", "time", _START_MS), ("HSET", f"{PREFIX}:config", "job_ttl_ms", TTL_MS)])

    def ask(self, calls: list[tuple[str, dict[str, Any]]], now_ms: int, *more: tuple[Any, ...]) -> list[Any]:
        """Run scripts one after the other at a time, in one round trip."""
        scripts = [("EVALSHA", self._shas[name], 0, PREFIX, json.dumps(arguments)) for name, arguments in calls]
        return self._ask([("SET", "time", now_ms), *more, *scripts])[1 + len(more) :]

    def _ask(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        return [self._answer() for _ in commands]

    def _answer(self) -> Any:
        """The next answer; an error in place of one, so that those after it are read as well."""
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error

    def close(self) -> None:
        """Let the server go."""
        self._connection.disconnect()
        self._redis.close()


@dataclass
class Walk:
    """One interleaving. Each action takes three small numbers, which say of what it is done."""

    scripts: Scripts
    now_ms: int = _START_MS
    tokens: list[Token] = field(default_factory=list)
    digests: list[str] = field(default_factory=lambda: [""] * len(JOBS))
    live: set[str] = field(default_factory=set)
    seen_leases: list[tuple[str, str]] = field(default_factory=list)
    last_call: tuple[str, dict[str, Any]] | None = None
    last_answer: Any = None
    steps: list[str] = field(default_factory=list)
    nonces: int = 0

    def __post_init__(self) -> None:
        self.scripts.begin()

    # ---- what may happen

    def submit(self, a: int, b: int, c: int) -> None:
        """A producer; with ``c`` under an idempotency key that others use as well."""
        job = JOBS[a % len(JOBS)]
        labels = ({}, {"team": "red"}, {"team": "blue"})[b % 3]
        self.call(
            "submit",
            id=job,
            nonce=self.nonce(),
            digest="d",
            idempotency_key=("", "k")[c % 4 == 3],
            schema_version="1",
            request="{}",
            options="{}",
            plan=json.dumps(PLAN),
            labels=json.dumps(labels),
            priority=str(b % 10),
            template="merge",
            callback_url="",
        )

    def begin(self, a: int, b: int, c: int) -> None:
        """A message arrives: as a rule the one that is due, else a late or an early one."""
        job, stage, attempt = self.due_attempt(a, b)
        attempt += (0, 0, 0, 0, 0, 0, 0, 0, -1, 1)[c % 10]
        host = HOSTS[c % 2]
        more = (("ZADD", f"{PREFIX}:hosts", self.now_ms, host),) if b % 3 else ()
        self.begun(job, stage, attempt, host, more=more)

    def begun(
        self, job: str, stage: str, attempt: int, host: str, *, more: tuple[tuple[Any, ...], ...] = ()
    ) -> Token | None:
        """A worker takes a stage, or the one whose turn it is instead."""
        for chosen in (False, True):
            text = f"{attempt}-{len(self.tokens)}"
            answer = self.call("begin", more, job_id=job, stage=stage, attempt=attempt, token=text, worker=f"w-{host}",
                               host=host, pin=True, limits={"team": 1}, lease_ms=LEASE_MS, schema_version=1,
                               chosen=chosen)  # fmt: skip
            if answer[0] != "instead":
                break
            job, stage, number, *_ = answer[1]
            attempt = int(number)
        if answer[0] != "begun":
            return None
        token = Token(job, stage, attempt, text)
        self.tokens.append(token)
        if f"{job} {stage} {text}" not in self.live:
            raise Broken(f"{text} was begun and holds nothing")
        return token

    def renew(self, a: int, b: int, c: int) -> None:
        """A heartbeat of any attempt there ever was."""
        self.with_token(a, "renew", lambda status, live: status == "lost" if not live else status in ("ok", "cancel"),
                        lease_ms=LEASE_MS)  # fmt: skip

    def relay(self, a: int, b: int, c: int) -> None:
        """Log lines, and what a publishing stage waits for."""
        waits = ({}, {"publishing": "/out"}, {"publishing": ""})[b % 3]
        self.with_token(a, "relay", lambda status, live: (status == "ok") is live, events=[], progress="{}", **waits)

    def complete(self, a: int, b: int, c: int) -> None:
        """A result of any attempt there ever was."""
        self.with_token(a, "complete", lambda status, live: not live or status in ("next", "finished"),
                        artifacts="[1]", facts="{}", seal="", message="done")  # fmt: skip

    def end_attempt(self, a: int, b: int, c: int) -> None:
        """A failure: to be tried again at once or later, for good, or cancelled."""
        following = ("queue", "queue", "queue", "fail", "cancel")[b % 5]
        self.with_token(a, "end_attempt", lambda status, live: not live or status != "lost", outcome="failed",
                        failure="", next=following, delay_ms=(0, 700)[c % 2], retries="0", crashes="0", level="warning",
                        message="failed", lease_until="")  # fmt: skip

    def rewind(self, a: int, b: int, c: int) -> None:
        """Files of earlier stages are gone."""
        token = self.pick(a)
        if token is None:
            return
        earlier = PLAN[: PLAN.index(token.stage)]
        reset = [stage for number, stage in enumerate(earlier) if b >> number & 1]
        self.with_token(a, "rewind", lambda status, live: not live or status in ("queued", "finished"), reset=reset,
                        message="gone")  # fmt: skip

    def look(self, a: int, b: int, c: int) -> None:
        """A reaper notes the leases; it may act on what it saw much later."""
        leases = self.scripts._redis.zrange(f"{PREFIX}:leases", 0, -1, withscores=True)
        self.seen_leases = [(member, str(int(score))) for member, score in leases]

    def rescue(self, a: int, b: int, c: int) -> None:
        """A reaper ends an attempt whose lease it saw not move."""
        if not self.seen_leases:
            return
        member, until = self.seen_leases[a % len(self.seen_leases)]
        job, _, stage = member.partition("|")
        held = self.scripts._redis.hget(f"{PREFIX}:{{{job}}}:stages", f"{stage}:token")
        if held:
            lease = self.scripts._redis.zscore(f"{PREFIX}:leases", member)
            answer = self.call("end_attempt", job_id=job, stage=stage, token=held, outcome="rescued", failure="",
                               next=("queue", "queue", "fail")[b % 3], delay_ms=0, retries="0", crashes="1",
                               level="warning", message="lost", lease_until=until)  # fmt: skip
            moved = lease is None or str(int(lease)) != until
            if (answer[0] == "lost") is not moved:
                raise Broken(f"a rescue of a lease that {'moved' if moved else 'stood still'}: {answer}")

    def renewed_meanwhile(self, a: int, b: int, c: int) -> None:
        """A reaper looks, the holder renews, the reaper acts on what it saw."""
        if not self.live:
            return
        job, stage, text = sorted(self.live)[a % len(self.live)].split()
        self.look(0, 0, 0)
        self.now_ms += 1 + b
        self.call("renew", job_id=job, stage=stage, token=text, lease_ms=LEASE_MS)
        self.rescue(self.seen_leases.index((f"{job}|{stage}", self.lease_seen(job, stage))), b, c)

    def lease_seen(self, job: str, stage: str) -> str:
        """The end of a lease as the reaper saw it last."""
        return dict(self.seen_leases)[f"{job}|{stage}"]

    def cancel(self, a: int, b: int, c: int) -> None:
        """Somebody cancels."""
        self.call("cancel", id=JOBS[a % len(JOBS)], nonce=self.nonce())

    def replay(self, a: int, b: int, c: int) -> None:
        """Somebody replays, from any stage or none."""
        self.call("replay", id=JOBS[a % len(JOBS)], from_stage=("", *PLAN)[b % 4], nonce=self.nonce())

    def due(self, a: int, b: int, c: int) -> None:
        """A reaper sends what was delayed."""
        self.call("due", limit=(1, 100)[b % 2])

    def overdue(self, a: int, b: int, c: int) -> None:
        """A reaper asks what was sent long ago."""
        self.call("overdue", age_ms=(0, 500)[b % 2], limit=100)

    def strand(self, a: int, b: int, c: int) -> None:
        """A host is given up, or was heard again meanwhile."""
        host = HOSTS[a % 2]
        seen = self.scripts._redis.zscore(f"{PREFIX}:hosts", host)
        self.call("strand", host=host, seen=str(int(seen)) if seen and b % 4 else "1")

    def expire(self, a: int, b: int, c: int) -> None:
        """Jobs whose time is over go."""
        self.call("expire", limit=100)

    def wait(self, a: int, b: int, c: int) -> None:
        """Time passes: a moment, a lease, or a job's life; or the clock goes back."""
        self.now_ms += (1, 300, LEASE_MS, 2 * LEASE_MS, TTL_MS + 1, -200)[a % 6]

    def set_limit(self, a: int, b: int, c: int) -> None:
        """An operator changes a cap."""
        self.call("set_limit", name=("team", "team=red")[a % 2], limit=("", "2", "none", "1")[b % 4], by="x", most=9)

    def set_pause(self, a: int, b: int, c: int) -> None:
        """An operator pauses a queue or a host, or lets it go on."""
        name = ("queue:packaging.io", "queue:packaging.heavy", "host:h1")[a % 3]
        self.call("set_pause", name=name, pause=b % 3 == 0, by="x", most=9)

    def set_fairness(self, a: int, b: int, c: int) -> None:
        """An operator lets values of a label take turns, or no more."""
        name, value = (("label", "team"), ("label", "team"), ("label", ""), ("=red", "3"))[a % 4]
        self.call("set_fairness", name=name, value=value, by="x", most=9)

    def again(self, a: int, b: int, c: int) -> None:
        """The answer of the last call was lost: it is said again, and must change nothing."""
        if self.last_call is None or self.last_call[0] in ("due", "overdue", "expire", "strand"):
            return
        name, arguments = self.last_call
        before, first = [*self.digests], self.last_answer
        answer = self.call(name, **arguments)
        if name == "end_attempt" and first[0] == "delayed":
            return  # said as what it is by now
        if name not in ("set_limit", "set_pause", "set_fairness", "begin") and (
            answer[0] != first[0] or self.digests != before
        ):
            raise Broken(f"{name} said again: {first} became {answer}")

    # ---- how

    def step(self, action: str, a: int, b: int, c: int) -> None:
        """One thing happens."""
        self.steps.append(f"{action}({a}, {b}, {c})")
        ACTIONS[action](self, a, b, c)

    def nonce(self) -> str:
        """One that nobody had."""
        self.nonces += 1
        return f"n{self.nonces}"

    def pick(self, a: int) -> Token | None:
        """A token: the newest as a rule."""
        return self.tokens[-1 - (0 if a < 5 else a) % len(self.tokens)] if self.tokens else None

    def due_attempt(self, a: int, b: int) -> tuple[str, str, int]:
        """Of one job, the stage that is queued (else any) and its next attempt."""
        job = JOBS[a % len(JOBS)]
        record = self.scripts._redis.hgetall(f"{PREFIX}:{{{job}}}:stages")
        queued = [stage for stage in PLAN if record.get(f"{stage}:state") == "queued"]
        stage = queued[0] if queued and b < 9 else PLAN[b % 3]
        return job, stage, int(record.get(f"{stage}:attempt", 0)) + 1

    def with_token(self, a: int, name: str, fits: Callable[[str, bool], bool], **arguments: Any) -> None:
        """Call as an attempt does; one that is not the stage's newest must change nothing."""
        token = self.pick(a)
        if token is None:
            return
        was_live = f"{token.job} {token.stage} {token.text}" in self.live
        before = [*self.digests]
        answer = self.call(name, job_id=token.job, stage=token.stage, token=token.text, **arguments)
        if not fits(answer[0], was_live):
            raise Broken(f"{name} of a token that {'is' if was_live else 'is not'} live: {answer}")
        if not was_live and self.digests != before:
            raise Broken(f"{name} of an old token wrote: {answer}")

    def call(self, name: str, /, more: tuple[tuple[Any, ...], ...] = (), **arguments: Any) -> Any:
        """Run a script and look at everything after it."""
        check = ("check", {"ids": JOBS, "most": {}})
        answer, checked = self.scripts.ask([(name, arguments), check], self.now_ms, *more)
        if isinstance(answer, ResponseError):
            raise Broken(f"{name}: {answer}")
        if isinstance(checked, ResponseError):
            raise checked
        problems, live, digests = checked
        if problems:
            raise Broken(f"after {name}, answered {answer}: {'; '.join(problems)}")
        if len({entry.split()[0] for entry in live}) != len(live):
            raise Broken(f"two live attempts of one job: {live}")
        self.live, self.digests = set(live), digests
        self.last_call, self.last_answer = (name, arguments), answer
        return answer

    def end(self) -> None:
        """Let everything go on with workers that work: every job must come to its end, and leave nothing."""
        for name in ("queue:packaging.io", "queue:packaging.heavy", "host:h1"):
            self.call("set_pause", name=name, pause=False, by="x", most=9)
        for _ in range(ROUNDS_TO_END):
            self.now_ms += 2 * LEASE_MS
            self.look(0, 0, 0)
            for number, _ in enumerate(self.seen_leases):
                self.rescue(number, 0, 0)
            messages = [*self.call("due", limit=100), *self.call("overdue", age_ms=LEASE_MS, limit=100)]
            for job, stage, attempt, *_ in messages:
                token = self.begun(job, stage, int(attempt), "h2")
                if token is not None:
                    self.call("complete", job_id=token.job, stage=token.stage, token=token.text, artifacts="[]",
                              facts="{}", seal="", message="done")  # fmt: skip
            states = [self.scripts._redis.hget(f"{PREFIX}:{{{job}}}:job", "state") for job in JOBS]
            if all(state in (None, "succeeded", "failed", "cancelled") for state in states):
                break
        else:
            raise Broken(f"after {ROUNDS_TO_END} rounds with a worker jobs are {states}")
        self.now_ms += 2 * TTL_MS
        self.call("expire", limit=100)
        left = [name for name in self.scripts._redis.keys(f"{PREFIX}:*") if any(job in name for job in JOBS)]
        if left or any(self.digests):
            raise Broken(f"keys after expiry: {left}")


Action = Callable[[Walk, int, int, int], None]
ACTIONS: dict[str, Action] = {
    action.__name__: action
    for action in (
        Walk.submit, Walk.begin, Walk.renew, Walk.relay, Walk.complete, Walk.end_attempt, Walk.rewind, Walk.look,
        Walk.rescue, Walk.renewed_meanwhile, Walk.cancel, Walk.replay, Walk.due, Walk.overdue, Walk.strand, Walk.expire,
        Walk.wait, Walk.set_limit, Walk.set_pause, Walk.set_fairness, Walk.again,
    )
}  # fmt: skip
WEIGHTS = {
    **{"submit": 4, "begin": 8, "complete": 5, "end_attempt": 3, "wait": 3, "replay": 3},
    **{"renew": 2, "rescue": 2, "look": 2, "again": 3, "cancel": 2},
}
"""How often each is done in a random walk; once where not said."""
