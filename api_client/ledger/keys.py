"""Every Redis key, in one place.

Map (``P`` is the key prefix, ``trainpack`` unless set; ``ID`` a job, ``M`` a member ``ID|stage``; times in ms)::

    key                       type    holds                                              lives
    P:{ID}:job                hash    state, request, options, plan, times, host         job_ttl_s after the end
    P:{ID}:stages             hash    ``stage:field`` of every stage                     as the job
    P:{ID}:attempts           list    JSON: attempts started and ended, in order         as the job
    P:{ID}:events             stream  the job's log, capped                              as the job
    P:jobs                    zset    ID by creation                                     entries as the job
    P:jobs:state:STATE        zset    ID by creation                                     entries as the job
    P:jobs:state:STATE:NAME   set     ID of jobs in a state whose template is NAME       entries as the job
    P:jobs:templates          set     names of templates that jobs have had              always
    P:jobs:tasks              hash    JSON by task id: registered training tasks         the newest 10,000
    P:jobs:tasks:at           zset    their ids by when they were registered             as they
    P:jobs:label:K=V          zset    ID by creation                                     entries as the job
    P:idempotency:KEY         string  JSON: job id and digest of the request             as the job
    P:expiry                  zset    ID by the time its keys go                         until then
    P:sent                    zset    M of queued stages by the time a message was sent  while queued
    P:wake                    zset    M of queued stages by the time a message is due    while delayed
    P:due:QUEUE               zset    M of queued stages by the time they became due     while queued, not held back
    P:leases                  zset    M of running stages by the end of the lease        while running
    P:pinned:HOST             set     M of queued stages that only HOST can run          while queued
    P:running:K=V             set     M of running stages that count against a cap       while running
    P:waiting:K=V             zset    M of queued stages held back by a cap              while held back
    P:held:REASON             zset    M of stages that wait for a reason that is written beside them, by since when
                                                                                         while they wait
    P:fairness                hash    ``label`` whose values take turns, weights by ``=VALUE``  always
    P:fair:PRIORITY:VALUE     zset    M of first stages that wait in the line of a value, by since when
                                                                                         while queued, not held back
    P:turns                   hash    the turn that was reached, by priority             always
    P:turns:PRIORITY          zset    values by their next turn                          while they wait
    P:limits                  hash    caps by label or ``label=value``, set while the service runs    always
    P:paused                  hash    JSON by ``queue:NAME`` or ``host:NAME``: who paused it and when until resumed
    P:audit                   stream  who changed which cap or pause, capped             always
    P:workers                 zset    worker names by last heartbeat                     until silent
    P:worker:NAME             hash    what the worker says of itself                     until silent
    P:hosts                   zset    hosts by last heartbeat                            until silent
    P:scratch:HOST            hash    ID -> scratch directory on that host               until removed
    P:templates               hash    site templates, JSON by name                       always
    P:figures:ARCH            list    JSON: figures of the latest reports of models of an
                                      architecture, at most 32                           180 days after the last
    P:callbacks               zset    ``ID|number`` of ends to announce, by the next try until delivered or given up
    P:config                  hash    job_ttl_ms, events_max, events_bytes, callbacks (0: workers
                                      have no secret), callbacks_private (0: to public
                                      addresses only), as the workers were told          always
    P:clock                   string  the server's time when the reaper last noted it    always
    P:reaper                  string  name of the worker that reaps                      one lease
    P:questions               list    ids of questions about files that wait             a minute
    P:question:QID            string  JSON: a question                                   while its asker waits
    P:answer:QID              stream  one entry: the answer                              a minute
    P:broker:*                        Celery's queues; kombu owns them

The Lua scripts build the same names in ``lua/prelude.lua``. They touch several hash tags at once, so the keys
must live on one node: Redis Cluster does not work (nor does Celery's broker on it); Sentinel does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from api_client.contract.job import StageName
from api_client.contract.stage_names import stage_named

KEY_TYPES = {
    "{ID}:job": "hash",
    "{ID}:stages": "hash",
    "{ID}:attempts": "list",
    "{ID}:events": "stream",
    "jobs": "zset",
    "jobs:state:STATE": "zset",
    "jobs:state:STATE:NAME": "set",
    "jobs:templates": "set",
    "jobs:tasks": "hash",
    "jobs:tasks:at": "zset",
    "jobs:label:K=V": "zset",
    "idempotency:KEY": "string",
    "expiry": "zset",
    "sent": "zset",
    "wake": "zset",
    "due:QUEUE": "zset",
    "leases": "zset",
    "pinned:HOST": "set",
    "running:K=V": "set",
    "waiting:K=V": "zset",
    "held:REASON": "zset",
    "fairness": "hash",
    "fair:PRIORITY:VALUE": "zset",
    "turns": "hash",
    "turns:PRIORITY": "zset",
    "limits": "hash",
    "paused": "hash",
    "audit": "stream",
    "workers": "zset",
    "worker:NAME": "hash",
    "hosts": "zset",
    "scratch:HOST": "hash",
    "templates": "hash",
    "figures:ARCH": "list",
    "callbacks": "zset",
    "config": "hash",
    "clock": "string",
    "reaper": "string",
    "questions": "list",
    "question:QID": "string",
    "answer:QID": "stream",
}
"""Redis type of every key of the map above, in its order; capitals stand for what varies."""

_PLACES = {"STATE": "[^:]+", "ID": "[^{}]+"}


def _pattern(name: str) -> re.Pattern[str]:
    """Matches the keys of one row; a state has no colon, which tells its index from those by template."""
    parts = re.split("([A-Z]+)", name)
    return re.compile("".join(_PLACES.get(part, ".+") if part.isupper() else re.escape(part) for part in parts))


_PATTERNS = {_pattern(name): kind for name, kind in KEY_TYPES.items()}


@dataclass(frozen=True)
class Keys:
    """Names of keys under one prefix."""

    prefix: str = "trainpack"

    def job(self, job_id: str) -> str:
        """The job's hash."""
        return f"{self.prefix}:{{{job_id}}}:job"

    def stages(self, job_id: str) -> str:
        """The hash of the job's stages."""
        return f"{self.prefix}:{{{job_id}}}:stages"

    def attempts(self, job_id: str) -> str:
        """The list of the job's attempts."""
        return f"{self.prefix}:{{{job_id}}}:attempts"

    def events(self, job_id: str) -> str:
        """The job's log stream."""
        return f"{self.prefix}:{{{job_id}}}:events"

    def state_index(self, state: str) -> str:
        """Jobs in one state."""
        return f"{self.prefix}:jobs:state:{state}"

    def template_index(self, state: str, template: str) -> str:
        """Jobs in one state with one template."""
        return f"{self.prefix}:jobs:state:{state}:{template}"

    def due(self, queue: str) -> str:
        """Stages that wait in one queue."""
        return f"{self.prefix}:due:{queue}"

    def label_index(self, key: str, value: str) -> str:
        """Jobs with one label."""
        return f"{self.prefix}:jobs:label:{key}={value}"

    def held(self, reason: str) -> str:
        """Stages that wait for a reason that stands beside them."""
        return f"{self.prefix}:held:{reason}"

    def worker(self, name: str) -> str:
        """What a worker says of itself."""
        return f"{self.prefix}:worker:{name}"

    def question(self, question_id: str) -> str:
        """A question about files, while its asker waits."""
        return f"{self.prefix}:question:{question_id}"

    def answer(self, question_id: str) -> str:
        """The answer to a question."""
        return f"{self.prefix}:answer:{question_id}"

    def figures(self, architecture: str) -> str:
        """Figures of reports of models of one architecture."""
        return f"{self.prefix}:figures:{architecture}"

    def scratch(self, host: str) -> str:
        """Scratch directories on one host."""
        return f"{self.prefix}:scratch:{host}"

    def named(self, name: str) -> str:
        """One of the fixed keys: ``jobs``, ``expiry``, ``sent``, ``wake``, ``leases``, ``hosts``, ``questions``, ..."""
        return f"{self.prefix}:{name}"

    def type_of(self, key: str) -> str | None:
        """Redis type that a key of this prefix has; ``None`` where the map knows no such key."""
        name = key.removeprefix(f"{self.prefix}:")
        return next((kind for pattern, kind in _PATTERNS.items() if pattern.fullmatch(name)), None)

    @property
    def broker_prefix(self) -> str:
        """Prefix of Celery's own keys."""
        return f"{self.prefix}:broker:"


def stage_field(stage: StageName, field: str) -> str:
    """A field of the hash of a job's stages."""
    return f"{stage.value}:{field}"


def split_member(member: str) -> tuple[str, StageName]:
    """Job and stage of an ``ID|stage`` member."""
    job_id, _, stage = member.partition("|")
    return job_id, stage_named(stage)
