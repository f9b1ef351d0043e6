"""Jobs of a soak: a few kinds with tiny models and real weights, submitted without end, each looked at at its end.

What a kind's files are is known from a run that nobody disturbed: a job counts as right where every model file has
those bytes, on the disk and in the storage.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from api_client import Job, JobState, PackagingClient, PackagingError, PackagingRequest
from api_client.s3 import S3Location, make_client
from tests.integration.harness import Installation
from tests.tiny import TEXT, tiny_base, tiny_checkpoint
from worker.local.embedded.state import StackInfo

AT_ONCE = 8
"""Jobs that are open at a time."""
CANCELLED_OF_100, REPLAYED_OF_100 = 6, 50
"""Of all jobs, those that are cancelled on their way; of those, the ones that are replayed."""
_TOLD_AGAIN_S = 0.3


@dataclass(frozen=True)
class Kind:
    """One request, and how often it is drawn."""

    weight: int
    fields: dict[str, Any]


def kinds(directory: Path, weights: Path | None) -> dict[str, Kind]:
    """All kinds; those with real weights where a model is given."""
    base = tiny_base(directory / "base")
    run = {"base_model": str(base), "checkpoint": str(tiny_checkpoint(base, directory / "run")), "evaluation": "off"}
    text = directory / "text.txt"
    text.write_text("\n".join(TEXT * 40))
    measured = run | {"evaluation": {"text": str(text)}}
    found = {
        "tiny, merged, two types": Kind(12, run | {"quant_types": ["Q8_0", "Q4_K_M"]}),
        "tiny, merged, no unquantized file": Kind(6, run | {"quant_types": ["Q4_0"], "keep_unquantized": False}),
        "tiny, merged, not quantized": Kind(6, run | {"template": "merge"}),
        "tiny, adapter alone": Kind(4, run | {"template": "lora_only"}),
        "tiny, merged, measured": Kind(2, measured | {"quant_types": ["Q8_0"]}),
    }
    if weights is not None:
        adapted = tiny_checkpoint(weights, directory / "real-run")
        real = {"base_model": str(weights), "checkpoint": str(adapted), "evaluation": "off"}
        found["135M, merged, Q4_K_M"] = Kind(1, real | {"quant_types": ["Q4_K_M"]})
        found["135M, adapter alone"] = Kind(1, real | {"template": "lora_only"})
    return found


@dataclass
class SoakJobs:
    """Everything that was submitted, by a thread of its own, and what has come of it.

    Args:
        service: Its workers and files.
        client: Its submits wait for the disk, as ``deploy/`` has it.
        stack: The object storage.
        kinds: What is drawn from.
        seed: Of the draws.
    """

    service: Installation
    client: PackagingClient
    stack: StackInfo
    kinds: dict[str, Kind]
    seed: str
    wanted: dict[str, dict[str, str]] = field(default_factory=dict)
    kind_of: dict[str, str] = field(default_factory=dict)
    cancelled: dict[str, float] = field(default_factory=dict)
    """Jobs whose cancel was answered, and when."""
    replayed: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    said_again: Counter[str] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._number = 0
        self._open: dict[str, float | None] = {}
        self._storage = make_client(self.stack.storage())

    def learn(self) -> None:
        """Run every kind undisturbed, and note its files."""
        for name in self.kinds:
            job = self.client.wait(self.submit(name).id, 900)
            assert job.state is JobState.SUCCEEDED, (name, job.error)
            self.wanted[name] = model_digests(job)
            self._open.pop(job.id)

    def run(self) -> None:
        """Submit and follow until told to stop; then follow until all have ended."""
        while not self.stopping.is_set():
            while len(self._open) < AT_ONCE and not self.stopping.is_set():
                name = self._draw.choices([*self.kinds], [kind.weight for kind in self.kinds.values()])[0]
                job = self.submit(name)
                if self._draw.randrange(100) < CANCELLED_OF_100:
                    self._open[job.id] = time.monotonic() + self._draw.uniform(0, 15)
            self.follow()
            time.sleep(0.2)

    def submit(self, kind: str) -> Job:
        """One job; asked again under its key until it is answered, as producers do."""
        self._number += 1
        output = self.service.directory / f"out-{self._number}"
        fields = self.kinds[kind].fields | {"output_dir": str(output), "idempotency_key": f"soak-{self._number}"}
        job = self.told("submit", lambda: self.client.submit(PackagingRequest(**fields)))
        self.kind_of[job.id] = kind
        self._open[job.id] = None
        return job

    def told(self, what: str, ask: Callable[[], Job]) -> Job:
        """Ask until Redis answers; any other refusal is raised."""
        while True:
            try:
                return ask()
            except PackagingError as error:
                if not error.code.startswith(("redis_", "submit_unconfirmed")):
                    raise
                self.said_again[f"{what}: {error.code}"] += 1
                time.sleep(_TOLD_AGAIN_S)

    def follow(self) -> None:
        """Cancel whose time has come, replay some of those, look at what has ended."""
        for job_id, cancel_at in [*self._open.items()]:
            if cancel_at is not None and time.monotonic() > cancel_at:
                self._open[job_id] = None
                self.cancel(job_id)
            job = self.told("get", partial(self.client.get, job_id))
            if not job.finished:
                continue
            if job.state is JobState.CANCELLED and self._draw.randrange(100) < REPLAYED_OF_100:
                self.replayed.add(job_id)
                self.cancelled.pop(job_id, None)
                self.told("replay", partial(self.client.replay, job_id))
                continue
            self._open.pop(job_id)
            self.look_at(job)

    def cancel(self, job_id: str) -> None:
        """Cancel; a job that has ended meanwhile is left."""
        try:
            self.told("cancel", partial(self.client.cancel, job_id))
            self.cancelled[job_id] = time.time()
        except PackagingError as error:
            if error.code != "job_finished":
                self.wrong.append(f"cancel of {job_id}: {error}")

    @property
    def open(self) -> list[str]:
        """Ids of what has not ended."""
        return [*self._open]

    def look_at(self, job: Job) -> None:
        """A job that has ended: its end, its files, its objects. Large files are removed once they are found right."""
        if job.state is not JobState.SUCCEEDED:
            if job.id not in self.cancelled or job.state is not JobState.CANCELLED:
                self.wrong.append(f"{job.id} ({self.kind_of[job.id]}) is {job.state}: {job.error}")
            return
        self.wrong += self.differences(job)
        if not self.kind_of[job.id].startswith("tiny"):
            shutil.rmtree(str(job.request.output_dir))

    def differences(self, job: Job) -> Iterator[str]:
        """What is not as it should be with the files of a job."""
        wanted = self.wanted[self.kind_of[job.id]]
        if model_digests(job) != wanted:
            yield f"{job.id}: other files than undisturbed: {model_digests(job)}, not {wanted}"
        for artifact in job.outputs:
            data = Path(artifact.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != artifact.sha256:
                yield f"{job.id}: {artifact.name} has other bytes than its record says"
            place = S3Location.parse(str(artifact.url))
            stored = self._storage.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
            if stored != data:
                yield f"{job.id}: {artifact.name} in the storage differs"


def model_digests(job: Job) -> dict[str, str]:
    """Digests of the model files, which do not depend on the job."""
    return {artifact.name: artifact.sha256 for artifact in job.outputs if artifact.kind.is_model}
