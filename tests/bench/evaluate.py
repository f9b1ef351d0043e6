"""Figures against ``llama-perplexity --kl-divergence``: ``python -m tests.bench evaluate --model DIR``.

Quantizes the model's unquantized F32 file with ``llama-quantize``, measures each file with the tool and here over the
same tokens (they are read from the tool's own logits file), and prints both side by side with the time of both. The
tools are those of ``make reference`` unless ``--tools`` names another build. What is made stays in ``--work`` and is
used again: with ``--seconds`` a run begins no new step after that long and ends with status 75, and the same command
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np

from api_client.contract.quality import FileQuality, TextSource
from config.roots import Roots
from tests.bench import measure, reference
from tests.bench.measure import Cost
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.evaluate.arithmetic import Arithmetic
from worker.models.evaluate.report import make_report
from worker.models.evaluate.run import Budget, evaluate_files
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.texts import shipped_parts
from worker.models.evaluate.variants import QuantizedFile
from worker.setting import WorkSetting

TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "IQ2_S")
_CONTEXT = 512
_PART_CHARACTERS = 2400
"""Of each part of the shipped text: what is measured on where no text is given has something of every kind."""
_GO_ON = 75
"""Exit status: there is more to do, run it again (EX_TEMPFAIL)."""
_KLD = re.compile(r"Mean\s+KLD:\s+(\S+) ±\s+(\S+)")
_TOP = re.compile(r"Same top p:\s+(\S+) ±\s+(\S+) %")
_KLD_BOUND, _KLD_SHARE, _TOP_BOUND = 0.0005, 0.03, 0.5
"""How far both may be apart: nats or that share of the tool's, and points of agreement."""


@dataclass(frozen=True)
class Theirs:
    """What llama-perplexity says of a file."""

    mean_kld: float
    same_top_percent: float
    cost: Cost


@dataclass(frozen=True)
class Ours:
    """What is measured here of all files in one pass."""

    files: Sequence[FileQuality]
    cost: Cost


class Clock:
    """Begins no step after a number of seconds."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def over(self) -> bool:
        """Whether the time is used up."""
        return self._end is not None and time.monotonic() > self._end

    def step(self, done: Path, make: Callable[[], object]) -> None:
        """Make ``done`` unless it is there; end the process where no time is left for it."""
        if done.is_file():
            return
        if self.over():
            print(f"not begun: {done.name}; run it again to go on", file=sys.stderr)
            sys.exit(_GO_ON)
        make()
        print(f"made {done.name}", file=sys.stderr)


class Tools:
    """The reference tools, and where their output goes."""

    def __init__(self, directory: Path, work: Path, threads: int, clock: Clock) -> None:
        self._directory = directory
        self._work = work
        self._threads = threads
        self._clock = clock

    def quantized(self, gguf: Path, quant_type: str) -> Path:
        """The file of a type; made unless it is there, with a matrix for the types that need one."""
        out = self._work / f"{gguf.stem}-{quant_type}.gguf"
        given = ["--imatrix", str(self._matrix(gguf))] if quant_type.startswith("IQ") else []
        making = out.with_suffix(".partial")

        def make() -> None:
            self._run("llama-quantize", *given, str(gguf), str(making), quant_type)
            making.replace(out)

        self._clock.step(out, make)
        return out

    def _matrix(self, gguf: Path) -> Path:
        out, text = self._work / f"{gguf.stem}-imatrix.gguf", self._work / "calibration.txt"
        shipped = resources.files("worker.models.imatrix").joinpath("calibration.txt")
        text.write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")
        making = out.with_suffix(".partial")

        def make() -> None:
            self._run("llama-imatrix", "-m", str(gguf), "-f", str(text), "-o", str(making), "--no-ppl",
                      "--chunks", "12", "--output-format", "gguf", *self._in_threads)  # fmt: skip
            making.replace(out)

        self._clock.step(out, make)
        return out

    def logits(self, gguf: Path, text: Path, chunks: int) -> tuple[Path, Cost]:
        """The reference's logits, and what they cost."""
        out, log = self._work / f"{gguf.stem}-{chunks}.logits", self._work / f"{gguf.stem}-{chunks}.cost.json"

        def make() -> None:
            cost = self._run("llama-perplexity", "-m", str(gguf), "-f", str(text), "--chunks", str(chunks),
                             "--kl-divergence-base", str(out), *self._in_threads)  # fmt: skip
            log.write_text(json.dumps(asdict(cost)))

        self._clock.step(log, make)
        return out, Cost(**json.loads(log.read_text()))

    def judged(self, file: Path, base: Path) -> Theirs:
        """Figures of a file; measured unless they are there."""
        log = self._work / f"{file.stem}-{base.stem}.json"

        def make() -> None:
            said = self._work / "said.txt"
            cost = self._run("llama-perplexity", "-m", str(file), "--kl-divergence-base", str(base),
                             "--kl-divergence", *self._in_threads, said=said)  # fmt: skip
            log.write_text(json.dumps({"said": said.read_text(), "cost": asdict(cost)}))

        self._clock.step(log, make)
        kept = json.loads(log.read_text())
        kld, top = (re.search(pattern, kept["said"]) for pattern in (_KLD, _TOP))
        assert kld is not None
        assert top is not None
        return Theirs(float(kld[1]), float(top[1]), Cost(**kept["cost"]))

    @property
    def _in_threads(self) -> tuple[str, str]:
        return "-t", str(self._threads)

    def _run(self, name: str, *arguments: str, said: Path | None = None) -> Cost:
        command = [str(self._directory / name), *arguments]
        return measure.run(command, said=said, LD_LIBRARY_PATH=str(self._directory))


def tokens_of(logits: Path) -> list[TokenSequence]:
    """The chunks that the tool cut: its file begins with a word, context, vocabulary, chunks, and all token ids."""
    with logits.open("rb") as file:
        assert file.read(8) == b"_logits_"
        context, _, chunks = struct.unpack("<III", file.read(12))
        ids = np.frombuffer(file.read(4 * context * chunks), "<i4").reshape(chunks, context)
    return [TokenSequence("text", tuple(int(token) for token in chunk), context // 2 + 1) for chunk in ids]


def ours(
    model: Path, files: Sequence[Path], sequences: Sequence[TokenSequence], arithmetic: Arithmetic, work: Path,
    clock: Clock,
) -> Ours:  # fmt: skip
    """Figures of all files in one pass, a process of its own for each, the loading of the model included."""
    names = "-".join(path.stem.rsplit("-", 1)[1] for path in files)
    out = work / f"{files[0].stem.rsplit('-', 1)[0]}-{len(sequences)}-{names}-{arithmetic.name}.json"

    def make() -> None:
        asked = {"model": str(model), "files": [str(path) for path in files], "arithmetic": arithmetic.value,
                 "sequences": [asdict(sequence) for sequence in sequences], "kept": str(out.with_suffix(".npz")),
                 "report": str(out.with_suffix(".report"))}  # fmt: skip
        task = out.with_suffix(".task")
        task.write_text(json.dumps(asked))
        cost = measure.run(measure.python("-m", "tests.bench.evaluate", "--task", str(task)))
        report = json.loads(out.with_suffix(".report").read_text())
        out.write_text(json.dumps({"files": report, "cost": asdict(cost)}))

    clock.step(out, make)
    kept = json.loads(out.read_text())
    return Ours([FileQuality.model_validate(file) for file in kept["files"]], Cost(**kept["cost"]))


def run_task(task: Path) -> None:
    """What :func:`ours` has done in another process."""
    asked = json.loads(task.read_text())
    roots = Roots.anywhere()
    files = [
        QuantizedFile(Path(path).name, [Path(path)], arithmetic=Arithmetic(asked["arithmetic"]))
        for path in asked["files"]
    ]
    sequences = [TokenSequence(cut["part"], tuple(cut["ids"]), cut["first_scored"]) for cut in asked["sequences"]]
    scores = evaluate_files(
        open_base_model(Path(asked["model"]), allowed_roots=roots),
        None,
        files,
        sequences,
        Budget(None, Path(asked["kept"])),
        setting=WorkSetting(roots=roots),
    )
    source = TextSource(kind="text", name="bench", sha256="", samples=len(sequences))
    report = make_report(scores, files, source, Path(asked["model"]).name)
    Path(asked["report"]).write_text(json.dumps([file.model_dump(mode="json") for file in report.files]))


def print_table(measured: Sequence[FileQuality], theirs: Sequence[Theirs], weights: Sequence[FileQuality]) -> bool:
    """Rows of Markdown; whether every file is within the bounds."""
    print("| type | bits/weight | mean KLD here | of the tool | difference | same top here | of the tool | points |"
          " weights only |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    within = True
    for own, other, alone in zip(measured, theirs, weights, strict=True):
        assert own.overall is not None, own.not_judged
        assert alone.overall is not None, alone.not_judged
        kld, top = own.overall.mean_kld, 100 * own.overall.same_top.value
        off, points = kld.value - other.mean_kld, top - other.same_top_percent
        kept = abs(off) <= max(_KLD_SHARE * other.mean_kld, _KLD_BOUND) and abs(points) <= _TOP_BOUND
        within = within and kept
        quant_type = own.name.rsplit("-", 1)[1].removesuffix(".gguf")
        print(
            f"| {quant_type} | {own.bits_per_weight:.2f} | {kld.value:.5f} ± {kld.error or 0:.5f} | "
            f"{other.mean_kld:.5f} | {off / other.mean_kld:+.1%} | {top:.2f} % | {other.same_top_percent:.2f} % | "
            f"{points:+.2f} | {alone.overall.mean_kld.value:.5f} |{'' if kept else ' outside'}"
        )
    return within


def told(what: str, cost: Cost) -> str:
    """Seconds and memory of one side."""
    return f"{what}: {cost.wall_s:.0f} s, {cost.cpu_s:.0f} s of processor, at most {cost.peak_bytes / 2**20:.0f} MiB"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face directory")
    parser.add_argument("--gguf", type=Path, help="the same model as F32 file; converted where not given")
    parser.add_argument("--text", type=Path, help="default: a beginning of every part of the shipped text")
    parser.add_argument("--chunks", type=int, default=8, help=f"of {_CONTEXT} tokens, the second half of each scored")
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--threads", type=int, default=2, help="of the tools; ours are OMP_NUM_THREADS")
    parser.add_argument("--seconds", type=float, help="begin no new step after so long")
    parser.add_argument("--tools", type=Path, default=reference.DIRECTORY / "build" / "bin")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-evaluate"))
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        run_task(arguments.task)
        return
    if arguments.model is None:
        parser.error("--model is required")
    work, clock = arguments.work, Clock(arguments.seconds)
    work.mkdir(parents=True, exist_ok=True)
    tools = Tools(arguments.tools, work, arguments.threads, clock)
    gguf = arguments.gguf or work / f"{arguments.model.name}.gguf"
    setting = WorkSetting(scratch_dir=work, roots=Roots.anywhere())
    clock.step(gguf, partial(convert, arguments.model, gguf, gguf_dtype="f32", setting=setting))
    text = arguments.text or work / "text.txt"
    if arguments.text is None:
        text.write_text("\n".join(part[:_PART_CHARACTERS] for _, part in shipped_parts()), encoding="utf-8")
    base, base_cost = tools.logits(gguf, text, arguments.chunks)
    sequences = tokens_of(base)
    files = [tools.quantized(gguf, quant_type) for quant_type in arguments.types]
    theirs = [tools.judged(file, base) for file in files]
    measured = ours(arguments.model, files, sequences, Arithmetic.LLAMA_CPP, work, clock)
    weights = ours(arguments.model, files, sequences, Arithmetic.EXACT, work, clock)
    print(f"{arguments.model.name}: {sum(sequence.scored for sequence in sequences)} scored tokens of "
          f"{text.name}")  # fmt: skip
    within = print_table(measured.files, theirs, weights.files)
    print(told(f"here, {len(files)} files in one pass", measured.cost))
    spent = sum((figures.cost for figures in theirs), base_cost)
    print(told(f"the tool, {len(files)} files and the logits of the reference", spent))
    print(told("of it the logits", base_cost) + f", {base.stat().st_size / 2**20:.0f} MiB of disk")
    print("all within 3 % or 0.0005, top token within 0.5 points" if within else "NOT all within the bounds")


if __name__ == "__main__":
    main()
