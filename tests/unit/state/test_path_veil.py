"""Paths of the machine in the log that is kept beside a job's outputs."""

from __future__ import annotations

from pathlib import Path

from worker.service.supervisor.path_veil import PathVeil


def test_paths_become_what_they_are_and_given_ones_stay() -> None:
    hidden = {"scratch": Path("/out/pkg/.trainpack-1"), "home": Path("/srv"), "base model": Path("/srv/cache/abc")}
    veil = PathVeil(hidden, frozenset({"/out/pkg", "/srv/models/given"}))
    event = {
        "message": "read /srv/cache/abc/config.json, wrote /out/pkg/.trainpack-1/overlay",
        "fields": {"/srv/x": ["/out/pkg/a.gguf", "/srv/models/given/b", "/srvx/y", 3, None]},
    }
    assert veil(event) == {
        "message": "read <base model>/config.json, wrote <scratch>/overlay",
        "fields": {"<home>/x": ["/out/pkg/a.gguf", "/srv/models/given/b", "/srvx/y", 3, None]},
    }


def test_the_root_hides_nothing_and_no_path_is_no_pattern() -> None:
    assert PathVeil({"home": Path("/")}, frozenset())("/a b/ c") == "/a b/ c"
