"""The map of keys: what is written of it for people, and what the worker goes by."""

from __future__ import annotations

import re

from api_client.ledger import keys
from api_client.ledger.keys import KEY_TYPES, Keys

JOB = "20261129-120000-abcdef"


def test_the_map_and_the_table_name_the_same_keys_and_types() -> None:
    rows = re.findall(r"^    P:(\S+) +(hash|list|set|stream|string|zset) ", keys.__doc__ or "", re.MULTILINE)
    assert dict(rows) == KEY_TYPES
    assert [name for name, _ in rows] == list(KEY_TYPES)


def test_every_key_is_known_by_its_type() -> None:
    of = Keys("t")
    known = {
        of.job(JOB): "hash",
        of.stages(JOB): "hash",
        of.attempts(JOB): "list",
        of.events(JOB): "stream",
        of.named("jobs"): "zset",
        of.state_index("queued"): "zset",
        of.template_index("queued", "a:b"): "set",
        of.label_index("run", "a:b=c"): "zset",
        of.due("packaging.host.x"): "zset",
        of.held("paused"): "zset",
        of.worker("w"): "hash",
        of.scratch("h"): "hash",
        of.question("q"): "string",
        of.answer("q"): "stream",
        of.figures("llama"): "list",
        of.named("config"): "hash",
    }
    assert {key: of.type_of(key) for key in known} == known
    for foreign in ("other:jobs", "t:nothing", f"t:{JOB}:job", f"{of.broker_prefix}packaging.heavy"):
        assert of.type_of(foreign) is None, foreign
