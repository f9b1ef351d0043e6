"""Quantizes a GGUF file that somebody kept, on this machine, without a job: what ``trainpack quantize`` calls."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from api_client.contract.errors import ErrorCode, PackagingError
from api_client.contract.fit import AnyQuantType, quant_type_of
from api_client.contract.outputs import QUANTIZED, OutputNames
from api_client.disk import failed_write
from worker.models.mixture.recipe import NO_RECIPES, Recipes
from worker.models.quantize.engine import quantize_file
from worker.models.quantize.imatrix_data import ImatrixData
from worker.models.quantize.result import QuantizeResult, TypeOutcome
from worker.models.quantize.source import whole_stem
from worker.models.quantize.split import split_gguf
from worker.setting import ON_THIS_MACHINE, WorkSetting
from worker.storage.checksums import sha256_file


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file in the output directory."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What was made.

    Attributes:
        result: Outcome of each quant type, as a single file.
        files: Files of each type that succeeded: one, or its shards.
        failed: Errors of the other types. A file that was made and could not be split is kept whole.
    """

    result: QuantizeResult
    files: dict[AnyQuantType, list[LocalFile]]
    failed: dict[AnyQuantType, PackagingError]


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How a file is quantized, and what may be left in the output directory.

    Attributes:
        imatrix: Importance matrix, if any.
        allow_requantize: Take an already quantized source.
        overwrite: Replace files that are there.
        split_max_bytes: Cut larger files into shards of this much tensor data; the single file is removed then.
        recipes: Types that go before those of the quant types, and the mixtures of fits.
    """

    imatrix: ImatrixData | None = None
    allow_requantize: bool = False
    overwrite: bool = False
    split_max_bytes: int | None = None
    recipes: Recipes = NO_RECIPES


PLAIN = LocalOptions()


def quantize_local(
    source: Path,
    quant_types: Sequence[str],
    output_dir: Path,
    *,
    options: LocalOptions = PLAIN,
    setting: WorkSetting = ON_THIS_MACHINE,
) -> LocalResult:
    """Quantize ``source`` into ``output_dir`` as ``{stem}-{QUANT}.gguf``, a shard's number left out of the stem.

    Args:
        source: Unquantized GGUF file, or the first of its shards.
        quant_types: Names, upper or lower case, each once.
        output_dir: Made if it does not exist.
        options: How, and what to leave there.
        setting: As for :func:`~worker.models.quantize.engine.quantize_file`.

    Raises:
        PackagingError: ``quant_types_empty``, ``quant_type_unknown``, ``quant_type_duplicate``, ``output_exists``,
            ``output_dir_not_writable``, and those of :func:`~worker.models.quantize.engine.quantize_file`.
        StopRequested: as asked; the same call goes on later.
    """
    kinds = parse_quant_types(quant_types)
    names = OutputNames(model=whole_stem(source), adapter="")
    outputs = {kind: output_dir / names.name(QUANTIZED, kind) for kind in kinds}
    if not options.overwrite:
        _check_absent(outputs.values())
    with _directory(output_dir):
        result = quantize_file(
            source,
            outputs,
            imatrix=options.imatrix,
            recipes=options.recipes,
            allow_requantize=options.allow_requantize,
            setting=setting,
        )
        files, failed = {}, result.failed
        for kind in [kind for kind in kinds if kind not in failed]:
            try:
                files[kind] = _split(result.outcomes[kind], options.split_max_bytes)
            except PackagingError as error:
                failed[kind] = error
        return LocalResult(result, files, failed)


def parse_quant_types(names: Sequence[str]) -> list[AnyQuantType]:
    """Quant types by name.

    Raises:
        PackagingError: ``quant_types_empty``, ``quant_type_unknown`` with the nearest name, ``quant_type_duplicate``,
            ``fit_invalid``.
    """
    if not names:
        raise PackagingError(ErrorCode.QUANT_TYPES_EMPTY, "no quant type is named")
    kinds: list[AnyQuantType] = []
    for name in names:
        kind = quant_type_of(name)
        if kind in kinds:
            raise PackagingError(ErrorCode.QUANT_TYPE_DUPLICATE, f"{kind.value} is named twice")
        kinds.append(kind)
    return kinds


def _check_absent(paths: Iterable[Path]) -> None:
    """Refuse to replace a file, or the shards of one."""
    for path in paths:
        shards = path.parent.glob(f"{glob.escape(path.stem)}-?????-of-?????.gguf")
        try:
            in_the_way = path if path.exists() else next(iter(sorted(shards)), None)
        except OSError as error:  # a folder that may not be searched, or a name too long
            raise failed_write(path.parent, error) from error
        if in_the_way is not None:
            raise PackagingError(
                ErrorCode.OUTPUT_EXISTS, f"{in_the_way} exists; it would be replaced", fields={"path": str(in_the_way)}
            )


@contextlib.contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """The directory, made with its parents; what was made goes again if nothing lies in it in the end."""
    made: list[Path] = []
    try:
        try:
            made += [path for path in (directory, *directory.parents) if not path.exists()]
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise failed_write(directory, error) from error
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def _split(made: TypeOutcome, max_bytes: int | None) -> list[LocalFile]:
    """The file itself if it is within the limit, or the shards that take its place."""
    shards = [made.path] if max_bytes is None else split_gguf(made.path, max_bytes)
    if shards == [made.path]:
        return [LocalFile(made.path, made.size_bytes, made.sha256)]
    made.path.unlink()
    return [LocalFile(path, path.stat().st_size, sha256_file(path)) for path in shards]
