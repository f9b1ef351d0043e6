"""Can someone else put files there? For what a worker would run as its own code."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def others_write(directory: Path) -> Path | None:
    """The first place on the way up from a directory that someone else than this user and root can write to.

    A directory above it where everyone may write, but remove only what is theirs (``/tmp``), is passed by.
    """
    try:
        real = directory.resolve()
        for place in (real, *real.parents):
            if place.exists() and is_open(info := place.stat()) and not (place != real and info.st_mode & stat.S_ISVTX):
                return place
    except OSError:
        return directory
    return None


def is_open(info: os.stat_result) -> bool:
    """Whether others than this user and root can write to a file or directory.

    A group that bears the user's own number is the user's alone, as systems make them and as pods have them.
    """
    if info.st_uid not in (0, os.geteuid()):
        return True
    own_group = info.st_gid == 0 or info.st_gid == os.getegid() == os.geteuid()
    return bool(info.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP))
