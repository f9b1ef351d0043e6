"""A machine that loses its power: what the server has written and not synced is gone, which SIGKILL alone does not do.

A library before the C library notes how long each file was when ``fdatasync`` or ``fsync`` was called and succeeded.
After SIGKILL the append-only file is cut to that length.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.integration.servers import Server

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int noted(const char *name, int fd) {
  struct stat at;
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  int known = fstat(fd, &at), answer = real(fd);
  if (answer || known) return answer;
  char link[64], path[4096], line[4200];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  const char *log = getenv("SYNC_LOG");
  if (length <= 0 || !log) return answer;
  path[length] = 0;
  int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  int size = snprintf(line, sizeof line, "%lld %s\n", (long long)at.st_size, path);
  if (out >= 0) { if (write(out, line, size) < 0) abort(); close(out); }
  return answer;
}
int fdatasync(int fd) { return noted("fdatasync", fd); }
int fsync(int fd) { return noted("fsync", fd); }
"""


def sync_library(directory: Path) -> Path | None:
    """Build the library; ``None`` where this machine has no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = directory / "noted.c", directory / "noted.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def powered(server: Server, library: Path | None) -> Server:
    """The server, not yet started, with its syncs noted."""
    if library is not None:
        server.environment = {"LD_PRELOAD": str(library), "SYNC_LOG": str(server.directory / "syncs.log")}
    return server


def cut_power(server: Server) -> int:
    """End the server at once, and take from its append-only file what was not synced; how many bytes that were."""
    server.end(signal.SIGKILL)
    if "SYNC_LOG" not in server.environment:
        return 0
    synced: dict[str, int] = {}
    for line in Path(server.environment["SYNC_LOG"]).read_text().splitlines():
        size, _, name = line.partition(" ")
        synced[name] = int(size)
    lost = 0
    for file in (server.directory / "appendonlydir").glob("*.incr.aof"):
        kept = synced.get(str(file), 0)
        lost += file.stat().st_size - kept
        os.truncate(file, kept)
    return lost
