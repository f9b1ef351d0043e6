"""Figures against ``llama-perplexity --kl-divergence``: ``python -m tests.bench evaluate --model DIR --gguf FILE``.

Quantizes the unquantized GGUF with ``llama-quantize``, measures each file with the tool and here over the same tokens
(they are read from the tool's own logits file), and prints both side by side with the time of both. The tools are those
of ``make reference`` unless ``--tools`` names another build; what is made stays in ``--work`` and is used again.
"""

from __future__ import annotations

import argparse
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from api_client.contract.quality import FileQuality, TextSource
from config.roots import Roots
from tests.bench import measure, reference
from worker.models.checkpoint import open_base_model
from worker.models.evaluate.arithmetic import Arithmetic
from worker.models.evaluate.report import make_report
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.variants import QuantizedFile
from worker.setting import WorkSetting

HELD_OUT = Path(__file__).with_name("held_out.txt")
TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "IQ2_S")
_CONTEXT = 512
_KLD = re.compile(r"Mean\s+KLD:\s+(\S+) ±\s+(\S+)")
_TOP = re.compile(r"Same top p:\s+(\S+) ±\s+(\S+) %")


@dataclass(frozen=True)
class Theirs:
    """What llama-perplexity says of a file."""

    mean_kld: float
    same_top_percent: float
    wall_s: float


class Tools:
    """The reference tools, and where their output goes."""

    def __init__(self, directory: Path, work: Path, threads: int) -> None:
        self._directory = directory
        self._work = work
        self._threads = threads

    def quantized(self, gguf: Path, quant_type: str, imatrix: Path | None) -> Path:
        """The file of a type; made unless it is there."""
        out = self._work / f"{gguf.stem}-{quant_type}.gguf"
        if not out.is_file():
            given = ["--imatrix", str(imatrix)] if imatrix is not None else []
            self._run("llama-quantize", *given, str(gguf), str(out), quant_type)
        return out

    def matrix(self, gguf: Path, text: Path) -> Path:
        """An importance matrix, for the types that need one."""
        out = self._work / f"{gguf.stem}-imatrix.gguf"
        if not out.is_file():
            self._run("llama-imatrix", "-m", str(gguf), "-f", str(text), "-o", str(out), "--no-ppl", "--chunks", "12")
        return out

    def logits(self, gguf: Path, text: Path, chunks: int) -> tuple[Path, float]:
        """The reference's logits, and the seconds they took; the text must be cut beforehand, the tool takes all."""
        out, log = self._work / f"{gguf.stem}-{chunks}.logits", self._work / f"{gguf.stem}-{chunks}.seconds"
        if not log.is_file():
            log.write_text(str(self._perplexity(gguf, "-f", str(text), "--chunks", str(chunks), base=out).wall_s))
        return out, float(log.read_text())

    def judged(self, file: Path, base: Path) -> Theirs:
        """Figures of a file; measured unless they are there."""
        log = self._work / f"{file.stem}-{base.stem}.log"
        if not log.is_file():
            started = time.perf_counter()
            text = self._output("llama-perplexity", "-m", str(file), "--kl-divergence-base", str(base),
                                "--kl-divergence", "-t", str(self._threads))  # fmt: skip
            log.write_text(f"{text}\nseconds: {time.perf_counter() - started}")
        text = log.read_text()
        found = [re.search(pattern, text) for pattern in (_KLD, _TOP, re.compile(r"seconds: (\S+)"))]
        kld, top, wall = (float(match[1]) for match in found if match is not None)
        return Theirs(kld, top, wall)

    def _perplexity(self, gguf: Path, *arguments: str, base: Path) -> measure.Cost:
        return self._run("llama-perplexity", "-m", str(gguf), *arguments, "--kl-divergence-base", str(base),
                         "-t", str(self._threads))  # fmt: skip

    def _run(self, name: str, *arguments: str) -> measure.Cost:
        return measure.run([str(self._directory / name), *arguments], LD_LIBRARY_PATH=str(self._directory))

    def _output(self, name: str, *arguments: str) -> str:
        return measure.output([str(self._directory / name), *arguments], LD_LIBRARY_PATH=str(self._directory))


def tokens_of(logits: Path) -> list[TokenSequence]:
    """The chunks that the tool cut: its file begins with a word, context, vocabulary, chunks, and all token ids."""
    with logits.open("rb") as file:
        assert file.read(8) == b"_logits_"
        context, _, chunks = struct.unpack("<III", file.read(12))
        ids = np.frombuffer(file.read(4 * context * chunks), "<i4").reshape(chunks, context)
    return [TokenSequence("text", tuple(int(token) for token in chunk), context // 2 + 1) for chunk in ids]


def ours(
    model: Path, files: Sequence[Path], sequences: Sequence[TokenSequence], arithmetic: Arithmetic
) -> tuple[list[FileQuality], float]:
    """Figures of all files in one pass, and its seconds, the loading of the model included."""
    roots = Roots.anywhere()
    opened = [QuantizedFile(path.name, [path], arithmetic=arithmetic) for path in files]
    started = time.perf_counter()
    scores = evaluate_files(
        open_base_model(model, allowed_roots=roots), None, opened, sequences, Budget(None),
        setting=WorkSetting(roots=roots),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    source = TextSource(kind="text", name="bench", sha256="", samples=len(sequences))
    return list(make_report(scores, opened, source, model.name).files), seconds


def print_table(measured: Sequence[FileQuality], theirs: Sequence[Theirs], weights: Sequence[FileQuality]) -> bool:
    """Rows of Markdown; whether every file is within the bounds."""
    print(
        "| type | bits/weight | mean KLD here | of the tool | difference | same top here | of the tool | weights only |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    within = True
    for own, other, alone in zip(measured, theirs, weights, strict=True):
        assert own.overall is not None, own.not_judged
        assert alone.overall is not None, alone.not_judged
        kld, top = own.overall.mean_kld, 100 * own.overall.same_top.value
        off = kld.value - other.mean_kld
        kept = abs(off) <= max(0.03 * other.mean_kld, 0.0005) and abs(top - other.same_top_percent) <= 0.5
        within = within and kept
        quant_type = own.name.rsplit("-", 1)[1].removesuffix(".gguf")
        figure = f"{kld.value:.5f} ± {kld.error or 0:.5f}"
        print(
            f"| {quant_type} | {own.bits_per_weight:.2f} | {figure} | {other.mean_kld:.5f} | "
            f"{off / other.mean_kld:+.1%} | {top:.2f} % | {other.same_top_percent:.2f} % | "
            f"{alone.overall.mean_kld.value:.5f} |"
            f"{'' if kept else ' outside'}"
        )
    return within


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--gguf", type=Path, required=True, help="the same model, converted and unquantized")
    parser.add_argument("--text", type=Path, default=HELD_OUT)
    parser.add_argument("--chunks", type=int, default=4, help=f"of {_CONTEXT} tokens, the second half of each scored")
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tools", type=Path, default=reference.DIRECTORY / "build" / "bin")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-evaluate"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tools = Tools(arguments.tools, arguments.work, arguments.threads)
    base, base_s = tools.logits(arguments.gguf, arguments.text, arguments.chunks)
    sequences = tokens_of(base)
    matrix = tools.matrix(arguments.gguf, arguments.text) if any(t.startswith("IQ") for t in arguments.types) else None
    files = [
        tools.quantized(arguments.gguf, each, matrix if each.startswith("IQ") else None) for each in arguments.types
    ]
    theirs = [tools.judged(file, base) for file in files]
    print(f"{sum(sequence.scored for sequence in sequences)} scored tokens of {arguments.text.name}")
    measured, seconds = ours(arguments.model, files, sequences, Arithmetic.LLAMA_CPP)
    weights, _ = ours(arguments.model, files, sequences, Arithmetic.EXACT)
    within = print_table(measured, theirs, weights)
    spent = base_s + sum(each.wall_s for each in theirs)
    print(f"time: {seconds:.0f} s here, {spent:.0f} s of the tool ({base_s:.0f} s of it for the reference's logits)")
    print("all within 3 % or 0.0005, top token within 0.5 points" if within else "NOT all within the bounds")


if __name__ == "__main__":
    main()
