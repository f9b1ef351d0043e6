"""Importance matrices against llama.cpp: ``python -m tests.bench.imatrix --model DIR --gguf FILE``.

Computes a matrix from the same text here and with ``llama-imatrix``, and compares: correlation of each tensor's mean
squared activations, counts, and time. Then quantizes the GGUF with either matrix (``llama-quantize``) and measures the
perplexity of the results on a text that was not used for calibration (``llama-perplexity``). The tools are those of
``make reference`` unless others are named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from pathlib import Path

import numpy as np

from tests.bench import measure, reference
from worker.models.checkpoint import open_base_model
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.gguf_form import write_imatrix
from worker.models.imatrix.load import read_imatrix
from worker.models.imatrix.sums import ImatrixSums

HELD_OUT = Path(__file__).with_name("held_out.txt")
TOOLS = ("llama-imatrix", "llama-quantize", "llama-perplexity")


def compute_ours(arguments: argparse.Namespace, text: str, out: Path) -> None:
    """Compute the matrix here; the time is without importing torch."""
    from worker.models.imatrix.calibration import Calibration
    from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix

    started, started_cpu = time.perf_counter(), time.process_time()
    computed = compute_imatrix(
        open_base_model(arguments.model),
        None,
        CalibrationChunks(Calibration("calibration", text), arguments.model, arguments.chunks),
        device=arguments.device,
    )
    write_imatrix(out, computed.sums)
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    print(f"ours: {computed.token_count} tokens on {computed.device}, {wall_s:.1f} s, {cpu_s:.1f} CPU seconds")
    print(f"left out: {list(computed.left_out)}")


def compute_theirs(tool: Path, gguf: Path, text: Path, chunks: int | None, out: Path) -> None:
    """Compute the matrix with llama-imatrix, without its own perplexity."""
    limit = ["--chunks", str(chunks)] if chunks else []
    command = [str(tool), "-m", str(gguf), "-f", str(text), "-o", str(out), "--no-ppl", *limit]
    cost = measure.run(command)
    print(f"theirs: {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU seconds")


def compare(ours: ImatrixSums, theirs: ImatrixSums) -> None:
    """Print how far the two matrices agree."""
    missing, extra = set(theirs.entries) - set(ours.entries), set(ours.entries) - set(theirs.entries)
    print(f"entries: ours {len(ours.entries)}, theirs {len(theirs.entries)}, missing {missing}, extra {extra}")
    print(f"chunks: ours {ours.chunk_count}, theirs {theirs.chunk_count}")
    correlations, errors, counts = {}, [], 0
    for name in sorted(set(ours.entries) & set(theirs.entries)):
        mine, other = ours.entries[name], theirs.entries[name]
        counts += int((mine.counts != other.counts).sum())
        a = (mine.in_sum2 / np.maximum(mine.counts, 1)[:, None]).ravel().astype(np.float64)
        b = (other.in_sum2 / np.maximum(other.counts, 1)[:, None]).ravel().astype(np.float64)
        correlations[name] = float(np.corrcoef(a, b)[0, 1])
        errors.append(float(np.median(np.abs(a - b) / np.maximum(b, 1e-30))))
    worst = min(correlations, key=lambda name: correlations[name])
    print(
        f"correlation: median {np.median(list(correlations.values())):.10f}, min {correlations[worst]:.10f} ({worst})"
    )
    print(f"relative difference: median of medians {np.median(errors):.2e}; counts that differ: {counts}")


def perplexity(tool: Path, gguf: Path, text: Path) -> str:
    """``llama-perplexity``'s final estimate."""
    done = subprocess.run([str(tool), "-m", str(gguf), "-f", str(text)], capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = (.*)", done.stdout + done.stderr)
    return found[1].strip() if found else "no estimate"


def compare_files(arguments: argparse.Namespace, matrices: dict[str, Path], held_out: Path) -> None:
    """Quantize with each matrix and with none, and print perplexities."""
    print(f"perplexity, unquantized: {perplexity(arguments.llama_perplexity, arguments.gguf, held_out)}")
    for quant_type in arguments.quant_types:
        for label, matrix in [("none", None), *matrices.items()]:
            out = arguments.work / f"{quant_type}-{label}.gguf"
            given = ["--imatrix", str(matrix)] if matrix else []
            command = [str(arguments.llama_quantize), *given, str(arguments.gguf), str(out), quant_type]
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                print(f"{quant_type}, matrix {label}: llama-quantize refuses")
                continue
            print(f"{quant_type}, matrix {label}: {perplexity(arguments.llama_perplexity, out, held_out)}", flush=True)
            out.unlink()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--gguf", type=Path, required=True, help="the same model, converted and unquantized")
    parser.add_argument("--calibration", type=Path, help="calibration text (default: the shipped one)")
    parser.add_argument("--held-out", type=Path, action="append", help="text for perplexity; may be repeated")
    parser.add_argument("--chunks", type=int, help="chunks of 512 tokens (default: the whole text)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quant-types", nargs="*", default=["IQ2_S", "Q4_K_M"])
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-imatrix"))
    for tool in TOOLS:
        parser.add_argument(f"--{tool}", type=Path, default=reference.tool(tool))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    calibration = load_calibration(arguments.calibration)
    text = arguments.work / "calibration.txt"
    text.write_text(calibration.text, encoding="utf-8")
    held_out = arguments.work / "held-out.txt"
    texts = [path.read_text(encoding="utf-8") for path in arguments.held_out or [HELD_OUT]]
    held_out.write_text("\n".join(texts), encoding="utf-8")
    matrices = {"ours": arguments.work / "ours.gguf", "theirs": arguments.work / "theirs.gguf"}
    compute_ours(arguments, calibration.text, matrices["ours"])
    compute_theirs(arguments.llama_imatrix, arguments.gguf, text, arguments.chunks, matrices["theirs"])
    compare(read_imatrix(matrices["ours"]), read_imatrix(matrices["theirs"]))
    compare_files(arguments, matrices, held_out)


if __name__ == "__main__":
    main()
