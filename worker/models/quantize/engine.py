"""The pass: every quant type asked for, from one reading of an unquantized GGUF file or what reads like one.

    open and plan -> claim the disk space -> slab by slab: read, widen once, quantize to each distinct type,
    write to every file -> sync and rename

Slabs are spread over threads; the kernels, reading, writing and hashing release the GIL. Memory is a few slabs per
thread (each about 8 MiB and its encodings), whatever the size of the model. Disk is the outputs. The results are the
bytes that llama-quantize b11434 writes, but for the two differences told in :mod:`worker.models.mixture.plan`; threads
and slabs change nothing.

A file that cannot be written fails alone; the others go on. When asked to stop, partial files and journals stay, and
the next call with the same arguments goes on from there.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType
from worker.models.gguf.types import GGMLType
from worker.models.heap import keep_freed_memory
from worker.models.kernels import gpu_if_there
from worker.models.mixture.recipe import NO_RECIPES, Recipes
from worker.models.quantize.copy_file import CopyFile
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.journal import fingerprint
from worker.models.quantize.lattice import Exactness
from worker.models.quantize.output_file import FileInTheMaking, OutputFile
from worker.models.quantize.prepare import Preparation, prepare
from worker.models.quantize.result import QuantizeProgress, QuantizeResult, TypeOutcome
from worker.models.quantize.slabs import Encoded, Slab, cut_slabs, encode_slab
from worker.models.quantize.source import Source, open_source
from worker.setting import ON_THIS_MACHINE, Report, WorkSetting
from worker.stop import ShouldStop, StopRequested

_AHEAD = 3  # slabs handed out per thread: a slow one must not leave the others idle


@dataclass(frozen=True, slots=True)
class _Processed:
    """What became of a slab.

    Attributes:
        written: By file, CRC-32.
        encoded: The slab in the types wanted, without their bytes.
    """

    written: Mapping[FileInTheMaking, int]
    encoded: Encoded


_Work = tuple[Slab, list[FileInTheMaking], Future[_Processed]]


def quantize_file(
    source: Path,
    outputs: Mapping[AnyQuantType, Path],
    *,
    imatrix: ImatrixData | None = None,
    recipes: Recipes = NO_RECIPES,
    allow_requantize: bool = False,
    resumable: bool = True,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> QuantizeResult:
    """Quantize a file to all types at once.

    Args:
        source: Unquantized GGUF file, or the first of its shards.
        outputs: Final path of each quant type's file; an existing file there is replaced when the new one is complete.
        imatrix: Importance matrix, if any.
        recipes: Types that go before those of the quant types, and the mixtures of fits.
        allow_requantize: Take an already quantized source, decoding it first; quality suffers.
        resumable: Keep a journal beside the partial files, and go on from an earlier attempt's.
        setting: Slabs are spread over its threads, by default one per CPU available; it is told a
            :class:`QuantizeProgress` after every slab, and asked before every slab.

    Returns:
        The outcome of each type: its file, or its error.

    Raises:
        PackagingError: What concerns all types: ``gguf_invalid``, ``gguf_already_quantized``, ``imatrix_required``,
            ``imatrix_invalid``, ``imatrix_mismatch``, ``recipe_invalid`` before any work;
            ``weights_not_finite`` naming the tensor.
        StopRequested: as asked; call again to go on.
    """
    with open_source(source) as opened:
        return quantize_source(
            opened,
            outputs,
            imatrix=imatrix,
            recipes=recipes,
            allow_requantize=allow_requantize,
            resumable=resumable,
            setting=setting,
        )


def quantize_source(
    source: Source,
    outputs: Mapping[AnyQuantType, Path],
    *,
    imatrix: ImatrixData | None = None,
    recipes: Recipes = NO_RECIPES,
    allow_requantize: bool = False,
    resumable: bool = True,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> QuantizeResult:
    """Quantize an open source; all else as :func:`quantize_file`, and its own errors when it is read."""
    _check_paths(source.paths, outputs)
    preparation = prepare(source, list(outputs), imatrix, recipes, allow_requantize=allow_requantize)
    return run_pass(source, preparation, outputs, imatrix=imatrix, resumable=resumable, setting=setting)


def run_pass(
    source: Source,
    preparation: Preparation,
    outputs: Mapping[AnyQuantType, Path],
    *,
    imatrix: ImatrixData | None = None,
    copy: CopyFile | None = None,
    resumable: bool = True,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> QuantizeResult:
    """Make the files that were prepared, and where ``copy`` is given the unquantized one as well.

    Arguments and errors as :func:`quantize_file`. With a copy, tensors are read in its order, and the digests of the
    others are read from the finished files. ``copy.error`` says why it is not there.
    """
    keep_freed_memory()
    files = {
        quant_type: OutputFile(
            outputs[quant_type],
            plan,
            fingerprint(
                source.identity,
                plan,
                imatrix.sha256 if imatrix else None,
                hits_lattice=preparation.hits_lattice,
            )
            if resumable
            else None,
            in_order=copy is None,
        )
        for quant_type, plan in preparation.plans.items()
    }
    work = _Pass(
        source,
        preparation,
        files,
        copy,
        threads=setting.threads or available_cpus(),
        report=setting.report,
        should_stop=setting.should_stop,
    )
    with gpu_if_there():
        return work.run()


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_paths(sources: Sequence[Path], outputs: Mapping[AnyQuantType, Path]) -> None:
    if not outputs or len(set(outputs.values())) != len(outputs):
        raise ValueError("one distinct path per quant type is needed")
    for path in outputs.values():
        if path.exists() and any(path.samefile(source) for source in sources):
            raise PackagingError(ErrorCode.OUTPUT_EXISTS, f"{path} is the source itself", fields={"path": str(path)})


@dataclass
class _Pass:
    """State of one pass. Everything but :meth:`_process` runs on the calling thread."""

    source: Source
    preparation: Preparation
    files: Mapping[AnyQuantType, OutputFile]
    copy: CopyFile | None
    threads: int
    report: Report
    should_stop: ShouldStop
    checks: dict[FileInTheMaking, list[int]] = field(default_factory=lambda: defaultdict(list))
    lattices: dict[str, GGMLType | None] = field(default_factory=dict)
    tensors_done: int = 0
    elements_done: int = 0
    elements_total: int = 0
    bytes_done: dict[AnyQuantType, int] = field(default_factory=dict)
    bytes_total: dict[AnyQuantType, int] = field(default_factory=dict)

    def run(self) -> QuantizeResult:
        slabs = list(cut_slabs(self.preparation.tensors))
        if self.copy is not None:
            places = {tensor.name: place for place, tensor in enumerate(self.copy.plan.tensors)}
            slabs.sort(key=lambda slab: places[slab.tensor.name])  # and within a tensor as they are
        try:
            for file in self._all:
                file.open(slabs)
            self._count_totals()
            self._announce(slabs)
            self._work_off(slabs)
            self.source.check_unchanged()
            with ThreadPoolExecutor(self.threads, thread_name_prefix="finish") as pool:
                digests = dict(zip(self._all, pool.map(self._finish, self._all), strict=True))
        except (StopRequested, KeyboardInterrupt):
            for file in self._all:
                file.suspend()
            raise
        finally:
            for file in self._all:
                file.discard()
        return self._result(digests)

    @property
    def _all(self) -> list[FileInTheMaking]:
        """The copy first: it is the largest."""
        return [*([self.copy] if self.copy is not None else []), *self.files.values()]

    def _work_off(self, slabs: Sequence[Slab]) -> None:
        """Hand slabs to the threads, a few ahead, and take the results in order."""
        window: deque[_Work] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="quantize") as pool:
            try:
                for slab in slabs:
                    wanted = [file for file in self._alive() if slab.tensor_index not in file.finished]
                    if not self._alive():
                        break
                    if self.should_stop():
                        raise StopRequested
                    if not wanted:
                        self._account(slab)
                        continue
                    if len(window) > _AHEAD * self.threads:
                        self._collect(window.popleft())
                    window.append((slab, wanted, pool.submit(self._process, slab, wanted)))
                while window:
                    self._collect(window.popleft())
            except StopRequested:
                for _, _, future in reversed(window):
                    future.cancel()
                while window and not window[0][2].cancelled():  # those that a thread had begun come first
                    self._collect(window.popleft())
                raise
            except BaseException:
                for _, _, future in window:
                    future.cancel()
                raise

    def _announce(self, slabs: Sequence[Slab]) -> None:
        """Tell the source what will be read: what an earlier attempt has made for every file is not."""
        alive = self._alive()
        read = [slab for slab in slabs if slab.is_last and any(slab.tensor_index not in f.finished for f in alive)]
        self.source.will_read([slab.tensor for slab in read])

    def _alive(self) -> list[FileInTheMaking]:
        return [file for file in self._all if file.error is None]

    def _process(self, slab: Slab, wanted: list[FileInTheMaking]) -> _Processed:
        """On a thread: make a slab in every type wanted and write it."""
        alive = [file for file in wanted if file.error is None]
        target_of = {file: file.type_of(slab) for file in alive}
        weights = self.preparation.weights.get(slab.tensor.name)
        targets = dict.fromkeys(target_of.values())
        encoded = encode_slab(self.source, slab, targets, weights, hit=self.preparation.hits_lattice)
        written = {}
        for file, target in target_of.items():
            data = encoded.data[target]
            if isinstance(data, PackagingError):
                file.fail(data)
            else:
                written[file] = file.write(slab, data)
        return _Processed(written, replace(encoded, data={}))

    def _collect(self, work: _Work) -> None:
        """Take the oldest slab's result; the last of a tensor completes it."""
        slab, wanted, future = work
        processed = future.result()
        for file, value in processed.written.items():
            self.checks[file].append(value)
        self._count(slab, processed)
        if slab.is_last:
            for file in wanted:
                values = tuple(self.checks.pop(file, ()))
                if file.error is None:
                    file.tensor_done(slab.tensor_index, values)
        for file in self._all:
            if file.error is None:
                file.wait_for_digest(_AHEAD * self.threads)
            else:
                file.release()
        self._account(slab)

    def _count(self, slab: Slab, processed: _Processed) -> None:
        encoded = processed.encoded
        for output in self.files.values():
            exactness = encoded.exactness.get(output.type_of(slab))
            if output in processed.written and exactness is not None:
                output.count(slab.tensor_index, exactness)
        if slab.is_first and encoded.is_quantized:
            self.lattices[slab.tensor.name] = encoded.lattice

    def _count_totals(self) -> None:
        self.elements_total = sum(tensor.element_count for tensor in self.preparation.tensors)
        self.bytes_done = dict.fromkeys(self.files, 0)
        self.bytes_total = {
            quant_type: sum(tensor.size_bytes for tensor in file.plan.tensors)
            for quant_type, file in self.files.items()
        }

    def _account(self, slab: Slab) -> None:
        """Count a slab as done, made or taken over, and report."""
        self.elements_done += slab.row_count * slab.tensor.row_length
        self.tensors_done += slab.is_last
        for quant_type, file in self.files.items():
            self.bytes_done[quant_type] += slab.row_count * file.plan.tensors[slab.tensor_index].row_bytes
        alive = [quant_type for quant_type, file in self.files.items() if file.error is None]
        self.report(
            QuantizeProgress(
                self.elements_done,
                self.elements_total,
                slab.tensor.name,
                tensors_done=self.tensors_done,
                tensors_total=len(self.preparation.tensors),
                written_bytes={quant_type: self.bytes_done[quant_type] for quant_type in alive},
                total_bytes={quant_type: self.bytes_total[quant_type] for quant_type in alive},
            )
        )

    def _finish(self, file: FileInTheMaking) -> str:
        return file.finish() if file.error is None else ""

    def _exactness(self, file: OutputFile) -> dict[str, Exactness] | None:
        if not self.preparation.hits_lattice:
            return None
        return {self.preparation.tensors[index].name: value for index, value in sorted(file.exactness.items())}

    def _result(self, digests: Mapping[FileInTheMaking, str]) -> QuantizeResult:
        return QuantizeResult(
            {
                quant_type: TypeOutcome(
                    file.final,
                    file.error,
                    file.plan.size_bytes,
                    digests[file],
                    file.plan.mixture.counts,
                    file.plan.mixture.fallback_count,
                    file.plan.bits_per_weight,
                    file.resumed,
                    self._exactness(file),
                )
                for quant_type, file in self.files.items()
            },
            self.lattices,
        )
