"""Are the files of earlier stages still there? What is missing or changed is made again, and nothing else.

A job can come to a host that never saw its scratch, or be replayed after its scratch was cleaned. Published copies
count: a file that lies in the output directory with the same size and digest stands in for the scratch copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from api_client.contract.job import Artifact, Job, StageName
from api_client.contract.request import is_remote
from api_client.contract.stages import needed_by
from worker.stages.context import StageResult


@dataclass(frozen=True)
class EarlierResults:
    """Results of earlier stages with paths that hold, or the stages to run again."""

    done: Mapping[StageName, StageResult]
    reset: tuple[StageName, ...] = ()
    missing: tuple[str, ...] = ()


def check_upstream(
    job: Job,
    stage: StageName,
    *,
    moved: bool,
    digests: bool,
    keep_going: Callable[[], bool] = lambda: True,
    usable: Callable[[str], bool] = lambda _: True,
    refused: Collection[StageName] = (),
) -> EarlierResults:
    """Check the artifacts that earlier stages of ``job`` recorded.

    Args:
        job: As stored.
        stage: The stage about to run; only those before it in the plan count.
        moved: The job comes from another host: ``prepare`` runs again, since its facts name local paths.
        digests: Read files in full and compare sha256, not sizes only.
        keep_going: Asked between files and blocks; ``False`` ends the check early with what is known.
        usable: Whether a file of the job may lie at a path; a record that names any other has lost its file.
        refused: Stages whose record is not believed; they run again.

    Returns:
        The results to hand on, or in ``reset`` the makers of what is missing and still needed, in order.
    """
    position = job.plan.index(stage)
    published = {artifact.name: artifact for artifact in job.outputs if StageName.PUBLISH not in refused}
    to_run = list(job.plan[position:])
    done: dict[StageName, StageResult] = {}
    missing: list[str] = []
    reset: list[StageName] = []
    for name in reversed(job.plan[:position]):
        record = job.stage(name)
        wanted = [artifact for artifact in record.artifacts if needed_by(to_run, artifact)]
        places = [
            _locate(
                a, published.get(a.name), job.request.output_dir, digests=digests, keep_going=keep_going, usable=usable
            )
            for a in wanted
        ]
        lost = [artifact.path for artifact, place in zip(wanted, places, strict=True) if place is None]
        if lost or name in refused or (moved and name is job.plan[0]):
            missing += lost
            reset.append(name)
            to_run.append(name)
        there = tuple(place for place in places if place is not None)
        if name not in refused:
            done[name] = StageResult.read(there, record.facts, record.duration_s or 0.0)
    return EarlierResults(dict(reversed(done.items())), tuple(reversed(reset)), tuple(missing))


def still_whole(
    previous: StageResult,
    output_dir: str | None,
    keep_going: Callable[[], bool] = lambda: True,
    usable: Callable[[str], bool] = lambda _: True,
) -> StageResult:
    """The files that a stage made before a replay and that are still there, in scratch or published; read in full."""
    places = [
        _locate(artifact, None, output_dir, digests=True, keep_going=keep_going, usable=usable)
        for artifact in previous.artifacts
    ]
    return replace(previous, artifacts=tuple(place for place in places if place is not None))


def _locate(
    artifact: Artifact,
    published: Artifact | None,
    output_dir: str | None,
    *,
    digests: bool,
    keep_going: Callable[[], bool],
    usable: Callable[[str], bool],
) -> Artifact | None:
    places = [artifact.path]
    if published is not None and published.sha256 == artifact.sha256:
        places.append(published.path)
    if output_dir is not None and not is_remote(output_dir):
        places.append(str(Path(output_dir) / artifact.name))
    for place in filter(usable, dict.fromkeys(places)):
        # A file that only has the right name in the output directory may be anyone's: its digest is always read.
        in_full = digests or place not in places[:1]
        if artifact.is_whole(Path(place), in_full=in_full, keep_going=keep_going):
            return artifact.model_copy(update={"path": place})
    return None
