"""Fits against stock types of the same bytes: ``python -m tests.bench fit --model DIR --tools DIR``.

For every quant type: its stock mixture with an importance matrix, and the fits of at most the same bytes, chosen by
prices and by measurement. Files are written by the quantize engine and judged twice, on texts that neither calibration
nor choice has seen: by the lockstep evaluation, and by ``llama-perplexity --kl-divergence``. Two peers in the same
harness choose without gradients: ``matrix`` weighs squared errors of outputs by the importance matrix, relative to the
outputs, which is what a model that cannot be run backward gets; ``15550`` is the rule of llama.cpp's pull request of
that number (:mod:`tests.bench.fit_peer`).

What was computed is kept in ``--work``, so that a run that was stopped goes on. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from api_client.contract.fit import FitType
from api_client.contract.quality import Divergence
from api_client.contract.quant_types import QuantType
from api_client.contract.recipe import TensorRule, exact_pattern
from api_client.contract.tensor_types import type_set
from config.roots import Roots
from tests.bench import reference
from tests.bench.fit_peer import allocate_by_errors, fronts, kept_errors
from worker.models.checkpoint import open_base_model
from worker.models.convert.pipeline import convert
from worker.models.convert.tokenizer import find_tokenizer
from worker.models.evaluate.sequences import TokenSequence
from worker.models.evaluate.texts import shipped_text, text_file
from worker.models.evaluate.tokenizer import load_tokenizer
from worker.models.fit.allocate import Market, allocate, type_in
from worker.models.fit.prices import Prices
from worker.models.fit.pricing import price_tensors
from worker.models.fit.select import STOCK, FitSubject, Measured, Types, measure, predicted, select
from worker.models.gguf.reader import open_gguf
from worker.models.gguf.types import GGMLType
from worker.models.imatrix.calibration import load_calibration
from worker.models.imatrix.compute import CalibrationChunks, compute_imatrix
from worker.models.imatrix.gguf_form import write_imatrix
from worker.models.imatrix.load import load_imatrix, read_imatrix
from worker.models.mixture.model import model_facts
from worker.models.mixture.names import OUTPUT_NAME
from worker.models.mixture.policy import choose_mixture
from worker.models.mixture.recipe import Made, Recipe, Recipes
from worker.models.quantize.engine import quantize_file
from worker.models.sensitivity.compute import CHUNK_TOKENS, compute_sensitivity
from worker.models.sensitivity.gguf_form import read_sensitivity, write_sensitivity
from worker.models.sensitivity.sums import Sensitivity, TensorSensitivity
from worker.setting import WorkSetting

QUANT_TYPES = ("Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "Q2_K")
RULE = "15550"
"""Name of the mixtures that the pull request's rule chooses."""
ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("LICENSE", "worker/models/kernels/packing.py", "README.zh-CN.md", "docs/faults.md")
"""Law, a program, Chinese, documentation: no part of the calibration or the evaluation text."""
SETTING = WorkSetting(roots=Roots.anywhere())


@contextmanager
def timed(what: str, times: dict[str, float]) -> Iterator[None]:
    """Print and note how long something took, and the largest memory of the process until then."""
    started, cpu = time.perf_counter(), time.process_time()
    yield
    times[what] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"# {what}: {times[what]:.1f} s, {time.process_time() - cpu:.1f} CPU seconds, peak {peak:.0f} MiB", flush=True
    )


@dataclass
class Bench:
    """One model and what was made of it so far."""

    model: Path
    work: Path
    tools: Path | None
    tokens: int
    judged_tokens: int
    chunks: int | None
    matrix_chunks: int | None

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.times: dict[str, float] = {}
        self.source = self.work / "model.gguf"
        if not self.source.is_file():
            convert(self.model, self.source, gguf_dtype="f16", setting=SETTING)
        self.base = open_base_model(self.model, allowed_roots=Roots.anywhere())
        self.matrix_path = self._kept("matrix.gguf", self._matrix)
        self.matrix = load_imatrix(self.matrix_path)
        self.sensitivity = read_sensitivity(self._kept("sensitivity.gguf", self._sensitivity))
        self.prices = self._priced("prices.json", self.sensitivity)
        self.peer = self._priced("peer.json", forward_only(self.sensitivity))
        self.row_errors = kept_errors(self.work / "rows.json", self.source, self.prices, self.matrix)
        with open_gguf(self.source) as file:
            self.facts, self.tensors = model_facts(file.metadata), list(file.tensors)
        tokenizer = load_tokenizer(
            find_tokenizer(None, self.model, None, allowed_roots=Roots.anywhere()), self.base.config
        )
        self.subject = FitSubject(
            self.base, None, self.source, self.matrix, first(shipped_text(tokenizer).sequences, self.tokens)
        )
        self.held_out = self.work / "held-out.txt"
        self.held_out.write_text("\n".join((ROOT / name).read_text("utf-8")[:12_000] for name in TEXTS), "utf-8")
        judged = first(text_file(self.held_out, tokenizer).sequences, self.judged_tokens)
        self.judge = replace(self.subject, sequences=judged)

    def _kept(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.work / name
        if not path.is_file():
            with timed(name, self.times):
                make(path)
        return path

    def _matrix(self, path: Path) -> None:
        text = CalibrationChunks(load_calibration(), self.model, self.matrix_chunks)
        write_imatrix(path, compute_imatrix(self.base, None, text, setting=SETTING).sums)

    def _sensitivity(self, path: Path) -> None:
        text = CalibrationChunks(load_calibration(), self.model, self.chunks, CHUNK_TOKENS)
        computed = compute_sensitivity(
            self.base, None, text, work_dir=self.work / "layers", matrix=read_imatrix(self.matrix_path), setting=SETTING
        )
        write_sensitivity(path, computed.sensitivity)

    def _priced(self, name: str, sensitivity: Sensitivity) -> Prices:
        types = [GGMLType[kind] for kind in type_set("k+iq")]

        def make(path: Path) -> None:
            path.write_text(price_tensors(self.source, sensitivity, types, self.matrix, setting=SETTING).to_json())

        return Prices.from_json(self._kept(name, make).read_text())

    def stock(self, quant_type: QuantType) -> Types:
        """The stock mixture, of the tensors that are priced."""
        mixture = choose_mixture(self.facts, self.tensors, quant_type, has_imatrix=True)
        types = {tensor.name: kind.name for tensor, kind in zip(self.tensors, mixture.types, strict=True)}
        return {tensor.name: types[tensor.name] for tensor in self.prices.tensors}

    def size(self, types: Types) -> int:
        """Bytes of the priced tensors."""
        return sum(tensor.bytes_of[types[tensor.name]] for tensor in self.prices.tensors)

    def allocation(self, prices: Prices, limit_bytes: int) -> Types | None:
        """The mixture of least predicted KLD of these prices."""
        kinds = {kind for tensor in prices.tensors for kind in tensor.kld_of}
        allowed = tuple(kind for kind in type_set("all") if kind in kinds)
        found = allocate(Market(prices, allowed, 32), limit_bytes)
        return None if found is None else found.types

    def choose(self, quant_type: QuantType, allowed: str) -> tuple[dict[str, Types], list[Measured]]:
        """Stock, the peer's mixture, the fit by prices and the fit by measurement; and all that was measured."""
        stock = self.stock(quant_type)
        limit = self.size(stock)
        prices, peer = usable(self.prices, allowed), usable(self.peer, allowed)
        path = self.work / f"chosen-{quant_type}-{allowed}.json"
        if path.is_file():
            kept = json.loads(path.read_text())
            return kept["mixtures"], []
        by_prices = self.allocation(prices, limit)
        others = {name: kind for name, kind in stock.items() if name not in {each.name for each in peer.tensors}}
        spent = sum(tensor.bytes_of[others[tensor.name]] for tensor in self.prices.tensors if tensor.name in others)
        by_peer = self.allocation(peer, limit - spent)
        assert by_prices is not None
        assert by_peer is not None
        with timed(f"selection {quant_type} {allowed}", self.times):
            found = select(
                prices,
                stock,
                lambda each: self.allocation(each, limit),
                self.subject,
                known=self.prices,
                setting=SETTING,
            )
        for each in found.measured:
            print(f"#   {each.name:44s} {each.kld:.5f}, predicted {each.predicted:.5f}", flush=True)
        print(f"#   factors {found.factors}", flush=True)
        mixtures = {STOCK: stock, "matrix": {**others, **by_peer}, "prices": by_prices, "chosen": found.chosen.types}
        path.write_text(json.dumps({"mixtures": {name: dict(types) for name, types in mixtures.items()}}))
        return mixtures, list(found.measured)

    def by_row_errors(self, quant_type: QuantType, allowed: str) -> Types:
        """The mixture of the pull request's rule within the stock mixture's bytes."""
        tied = all(tensor.name != OUTPUT_NAME for tensor in self.prices.tensors)
        tensors = fronts(usable(self.prices, allowed), self.row_errors)
        return allocate_by_errors(tensors, self.size(self.stock(quant_type)), tied=tied)

    def judged(self, quant_type: QuantType, mixtures: Mapping[str, Types]) -> list[Measured]:
        """Figures on the held-out text; kept."""
        path = self.work / f"judged-{quant_type}.json"
        kept = json.loads(path.read_text()) if path.is_file() else []
        known = [types for _, types, _ in kept]
        missing = {name: types for name, types in mixtures.items() if dict(types) not in known}
        if missing:
            found = measure(self.prices, missing, self.judge, setting=SETTING)
            kept += [[each.name, dict(each.types), each.divergence.model_dump(mode="json")] for each in found]
            path.write_text(json.dumps(kept))
        return [
            Measured(name, types, predicted(self.prices, types), Divergence.model_validate(figures))
            for name, types, figures in kept
        ]

    def by_llama_cpp(self, quant_type: QuantType, name: str, types: Types) -> dict[str, float]:
        """``llama-perplexity``'s figures of a mixture, written as a file; kept."""
        label = f"{quant_type}-{name.replace(' ', '-').replace('+', '-')}"
        kept = self.work / f"llama-{label}.json"
        if not kept.is_file():
            path = self.write(label, types)
            kept.write_text(json.dumps(self.perplexity(path)))
            path.unlink()
        figures: dict[str, float] = json.loads(kept.read_text())
        return figures

    def write(self, name: str, types: Types) -> Path:
        """A file of a mixture, by the quantize engine."""
        path = self.work / f"{name}.gguf"
        rules = tuple(TensorRule(exact_pattern(tensor), kind) for tensor, kind in types.items())
        fit = FitType("fit:8bpw")
        made = {fit: Made(QuantType.Q4_K_M, Recipe(rules=rules))}
        quantize_file(self.source, {fit: path}, imatrix=self.matrix, recipes=Recipes(fitted=made), setting=SETTING)
        return path

    def perplexity(self, path: Path, base: bool = False) -> dict[str, float]:
        """``llama-perplexity``'s figures of a file against the unquantized one."""
        assert self.tools is not None
        logits = self.work / "logits.bin"
        chunks = ["--chunks", str(max(1, self.judged_tokens // 512))]
        command = [
            str(self.tools / "llama-perplexity"),
            "-m",
            str(path),
            "-f",
            str(self.held_out),
            "-c",
            "512",
            *chunks,
        ]
        command += (
            ["--kl-divergence-base", str(logits)] if base else ["--kl-divergence", "--kl-divergence-base", str(logits)]
        )
        environment = {"LD_LIBRARY_PATH": str(self.tools)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        figures = {}
        for key, pattern in {
            "kld": r"Mean\s+KLD:\s+([\d.]+)",
            "kld_999": r"99\.9%\s+KLD:\s+([\d.]+)",
            "top": r"Same top p:\s+([\d.]+)",
        }.items():
            match = re.search(pattern, done.stdout + done.stderr)
            figures[key] = float(match[1]) if match else np.nan
        return figures


def usable(prices: Prices, allowed: str) -> Prices:
    """Prices of the allowed types, and of what llama-quantize falls back to where they do not divide a row."""
    kinds = type_set(allowed)
    return Prices(tuple(tensor.only({type_in(kind, tensor) for kind in kinds}) for tensor in prices.tensors))


def forward_only(sensitivity: Sensitivity) -> Sensitivity:
    """What the importance matrix says by itself: no gradients, nothing of embedding and head."""
    matrix = sensitivity.matrix().entries
    return replace(sensitivity, entries={name: TensorSensitivity(inputs, None) for name, inputs in matrix.items()})


def first(sequences: Any, tokens: int) -> list[TokenSequence]:
    """So many tokens of sequences, at least one sequence."""
    taken: list[TokenSequence] = []
    for sequence in sequences:
        if taken and sum(len(each.ids) for each in taken) + len(sequence.ids) > tokens:
            break
        taken.append(sequence)
    return taken


def quickly(bench: Bench, quant_type: QuantType, allowed: tuple[str, ...]) -> Iterator[list[str]]:
    """Rows of one quant type: mixtures by prices and by the peer's rule, judged by ``llama-perplexity`` alone."""
    limit = bench.size(bench.stock(quant_type))
    mixtures = {STOCK: bench.stock(quant_type)}
    for kinds in allowed:
        fitted = bench.allocation(usable(bench.prices, kinds), limit)
        assert fitted is not None
        mixtures |= {f"prices {kinds}": fitted, f"{RULE} {kinds}": bench.by_row_errors(quant_type, kinds)}
    figures = {name: bench.by_llama_cpp(quant_type, name, types) for name, types in mixtures.items()}
    for name, types in mixtures.items():
        theirs = figures[name]
        yield [
            quant_type.value,
            name,
            f"{bench.size(types) / 1e6:.2f}",
            f"{predicted(bench.prices, types):.4f}",
            *["-"] * 3,
            f"{theirs['kld']:.4f} ({100 * (theirs['kld'] / figures[STOCK]['kld'] - 1):+.0f} %)",
            f"{theirs['kld_999']:.3f}",
            f"{theirs['top']:.1f}",
        ]


def compare(bench: Bench, quant_type: QuantType, allowed: tuple[str, ...]) -> Iterator[list[str]]:
    """Rows of one quant type."""
    mixtures: dict[str, Types] = {}
    for kinds in allowed:
        found, _ = bench.choose(quant_type, kinds)
        mixtures |= {name if name == STOCK else f"{name} {kinds}": types for name, types in found.items()}
        mixtures[f"{RULE} {kinds}"] = bench.by_row_errors(quant_type, kinds)
    judged = bench.judged(quant_type, mixtures)
    stock = next(each for each in judged if dict(each.types) == dict(mixtures[STOCK])).kld
    theirs_stock = np.nan
    for name, types in mixtures.items():
        mine = next(each for each in judged if dict(each.types) == dict(types))
        theirs: Mapping[str, float] = {}
        if bench.tools is not None and name.split()[0] in (STOCK, "chosen", RULE):
            theirs = bench.by_llama_cpp(quant_type, name, types)
            theirs_stock = theirs["kld"] if name == STOCK else theirs_stock
        yield [
            quant_type.value,
            name,
            f"{bench.size(types) / 1e6:.2f}",
            f"{predicted(bench.prices, types):.4f}",
            f"{mine.kld:.4f} ({100 * (mine.kld / stock - 1):+.0f} %)",
            f"{mine.divergence.kld_999:.3f}",
            f"{100 * mine.divergence.same_top.value:.1f}",
            f"{theirs['kld']:.4f} ({100 * (theirs['kld'] / theirs_stock - 1):+.0f} %)" if theirs else "-",
            f"{theirs['kld_999']:.3f}" if theirs else "-",
            f"{theirs['top']:.1f}" if theirs else "-",
        ]


HEAD = ("of", "mixture", "MB", "predicted KLD", "KLD", "99.9 %", "top %", "llama.cpp KLD", "99.9 %", "top %")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-fit"))
    parser.add_argument("--tools", type=Path, help="folder of llama-perplexity; without it our evaluation judges alone")
    parser.add_argument("--quant-types", nargs="*", default=QUANT_TYPES)
    parser.add_argument("--types", nargs="*", default=["k", "k+iq"])
    parser.add_argument("--tokens", type=int, default=2048, help="tokens that candidates are measured on")
    parser.add_argument("--judged-tokens", type=int, default=4096, help="tokens of held-out text")
    parser.add_argument("--chunks", type=int, help="chunks of calibration text for the sensitivities")
    parser.add_argument("--matrix-chunks", type=int, help="chunks of it for the importance matrix (default: all)")
    parser.add_argument("--quick", action="store_true", help="mixtures by prices, judged by llama-perplexity alone")
    arguments = parser.parse_args()
    tools = arguments.tools or (found.parent if (found := reference.tool("llama-perplexity")) else None)
    bench = Bench(
        arguments.model,
        arguments.work,
        tools,
        arguments.tokens,
        arguments.judged_tokens,
        arguments.chunks,
        arguments.matrix_chunks,
    )
    if tools is not None and not (bench.work / "logits.bin").is_file():
        bench.perplexity(bench.source, base=True)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for quant_type in map(QuantType, arguments.quant_types):
        for row in (quickly if arguments.quick else compare)(bench, quant_type, tuple(arguments.types)):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
