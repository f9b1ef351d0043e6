"""How many workers a stream of jobs needs: queue delay and utilisation, simulated.

``python -m tests.bench.fleet --rate 20 --mix 1b:6,8b:3,70b:1 --worker gpu:2 --worker cpu:4:2 [--failures 0.02]``.
A worker is ``KIND:COUNT[:SLOTS]``; kinds and their rates are in ``KINDS``, model sizes in ``MODELS``, and
``docs/sizing.md`` says where both come from. ``--kind NAME=CONVERT,READ,QUANTIZE,UPLOAD,FIXED`` adds a kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.bench.queueing import Faults, Outcome, poisson, simulate

HOUR_S = 3600.0


@dataclass(frozen=True)
class Kind:
    """Rates of one slot of a kind of worker.

    Attributes:
        convert: Merging and converting, reading and writing included, MB/s of 16-bit weights.
        read: Reading the unquantized GGUF again, MB/s.
        quantize: Million weights a second, one K-quant.
        upload: MB/s to object storage.
        fixed_s: Seconds of a job that do not depend on the model: processes, checks, loading the result.
    """

    convert: float
    read: float
    quantize: float
    upload: float
    fixed_s: float


KINDS = {
    "small": Kind(63, 400, 60, 100, 15),
    "cpu": Kind(500, 1000, 1000, 250, 15),
    "gpu": Kind(1500, 3000, 3000, 1000, 10),
}
"""``small``: measured on 2 cores that other work loaded. ``cpu`` (16 cores, SSD) and ``gpu`` (NVMe): estimates."""
MODELS = {"135m": 0.135, "1b": 1.1, "3b": 3.2, "8b": 8.0, "14b": 14.8, "32b": 32.8, "70b": 70.6}
"""Billions of weights."""
BITS = {"Q4_K_M": 4.89, "Q5_K_M": 5.70, "Q8_0": 8.50}
"""Bits per weight of the types that a job makes, in this order."""


@dataclass(frozen=True)
class JobTime:
    """Seconds of one job, by part. Stages follow each other, so parts add up."""

    convert: float
    quantize: float
    publish: float
    fixed: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.convert + self.quantize + self.publish + self.fixed

    @property
    def slowest(self) -> str:
        """What to make faster first: ``convert``, ``quantize`` or ``upload``."""
        parts = {"convert": self.convert, "quantize": self.quantize, "upload": self.publish}
        return max(parts, key=lambda name: parts[name])


def job_time(billions: float, kind: Kind, n_types: int = 1) -> JobTime:
    """Seconds of a job by the model's size; within a stage the slowest resource counts, reading or computing."""
    half_mb = billions * 2000.0
    made_mb = sum(billions * 1000.0 * bits / 8 for bits in list(BITS.values())[:n_types])
    return JobTime(
        convert=half_mb / kind.convert,
        quantize=max(half_mb / kind.read, n_types * billions * 1000.0 / kind.quantize),
        publish=(half_mb + made_mb) / kind.upload,
        fixed=kind.fixed_s,
    )


@dataclass(frozen=True)
class Fleet:
    """What is asked.

    Attributes:
        rate: Jobs an hour.
        mix: Shares of model sizes.
        slots: The kind of every slot, the preferred first.
        n_types: Quant types a job.
        faults: How attempts fail.
    """

    rate: float
    mix: Mapping[str, float]
    slots: Sequence[str]
    n_types: int = 1
    faults: Faults = field(default_factory=Faults)


def objection(fleet: Fleet, kinds: Mapping[str, Kind], jobs: int) -> str | None:
    """Why a question makes no sense, if so."""
    unknown = [
        *(size for size in fleet.mix if size not in MODELS),
        *(kind for kind in fleet.slots if kind not in kinds),
    ]
    if unknown:
        return f"there is no {unknown[0]}; sizes are {', '.join(MODELS)}; kinds are {', '.join(kinds)}"
    if not fleet.slots or fleet.rate <= 0 or jobs < 1 or sum(fleet.mix.values()) <= 0:
        return "at least one worker, one job, a share and a rate above zero are needed"
    return None if 0 <= fleet.faults.rate <= 1 else "a chance lies between 0 and 1"


def simulate_fleet(fleet: Fleet, kinds: Mapping[str, Kind], jobs: int, seed: int) -> Outcome:
    """So many jobs through the fleet."""
    work = {
        size: {kind: job_time(MODELS[size], kinds[kind], fleet.n_types).total for kind in set(fleet.slots)}
        for size in fleet.mix
    }
    names, shares = list(fleet.mix), list(fleet.mix.values())

    def draw(chance: Random) -> Mapping[str, float]:
        return work[chance.choices(names, shares)[0]]

    return simulate(poisson(fleet.rate / HOUR_S, jobs, draw, seed), fleet.slots, fleet.faults, seed)


def report(outcome: Outcome) -> str:
    """The figures as text."""
    runs = outcome.runs
    delays = f"mean {outcome.mean_delay_s:.0f} s, p50 {outcome.delay_s(0.5):.0f} s, p95 {outcome.delay_s(0.95):.0f} s"
    busy = ", ".join(f"{kind} x{outcome.slots[kind]} {part:.0%}" for kind, part in outcome.utilisation.items())
    failed = sum(not run.succeeded for run in runs)
    retries = sum(run.attempts for run in runs) - len(runs)
    return (
        f"jobs         {len(runs)} in {outcome.ended_s / HOUR_S:.1f} h, {retries} attempts repeated, {failed} failed\n"
        f"queue delay  {delays}\n"
        f"busy         {busy}"
    )


def parse_mix(text: str) -> dict[str, float]:
    """``1b:6,8b:3`` as shares."""
    pairs = (part.partition(":") for part in text.split(","))
    return {size: float(share or 1) for size, _, share in pairs}


def parse_worker(text: str) -> list[str]:
    """``gpu:2`` or ``cpu:4:2`` as the kind of every slot."""
    kind, count, per_worker, *_ = [*text.split(":"), "1", "1"]
    return [kind] * (int(count) * int(per_worker))


def parse_kind(text: str) -> tuple[str, Kind]:
    """``NAME=CONVERT,READ,QUANTIZE,UPLOAD,FIXED``."""
    name, _, rates = text.partition("=")
    return name, Kind(*(float(rate) for rate in rates.split(",")))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20, help="jobs an hour")
    parser.add_argument("--mix", type=parse_mix, default="1b:6,8b:3,70b:1", help="model sizes and their shares")
    parser.add_argument("--worker", action="append", type=parse_worker, help="KIND:COUNT[:SLOTS]; may be repeated")
    parser.add_argument("--kind", action="append", type=parse_kind, default=[], help="a kind of your own, or new rates")
    parser.add_argument("--types", type=int, default=1, choices=range(1, len(BITS) + 1), help="quant types a job")
    parser.add_argument("--failures", type=float, default=0.0, help="chance that an attempt fails")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    kinds = KINDS | dict(arguments.kind)
    faults = Faults(arguments.failures, pause_s=2.0)
    slots = [slot for worker in arguments.worker or [["gpu"]] for slot in worker]
    fleet = Fleet(arguments.rate, arguments.mix, slots, arguments.types, faults)
    if why := objection(fleet, kinds, arguments.jobs):
        parser.error(why)
    for size in fleet.mix:
        times = {kind: job_time(MODELS[size], kinds[kind], fleet.n_types) for kind in dict.fromkeys(fleet.slots)}
        print(f"{size:>5} " + "; ".join(f"{kind} {t.total:.0f} s, slowest {t.slowest}" for kind, t in times.items()))
    print(report(simulate_fleet(fleet, kinds, arguments.jobs, arguments.seed)))


if __name__ == "__main__":
    main()
