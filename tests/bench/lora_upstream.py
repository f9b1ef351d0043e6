"""LoRA export against upstream's ``convert_lora_to_gguf.py``, tensor by tensor; for the tables of ``docs``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from worker.models.convert.metadata import Naming

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "convert"))
from api_client.contract.errors import PackagingError
from tests.bench.reference import source_dir
from tests.unit.convert.convert_samples import ARCHITECTURES, read_gguf, save_adapter, save_model
from worker.models.adapters import normalise_for_export, open_adapter
from worker.models.checkpoint import open_base_model
from worker.models.convert.lora import export_lora

TARGETS = {"mamba": ["in_proj", "x_proj"]}
__all__ = ["ARCHITECTURES", "compare"]


def compare(name: str) -> str:
    """What comes of an adapter on all linear layers of an architecture, both sides written in F32, in a few words."""
    source = source_dir()
    if source is None:
        return "not tried: run `make reference`"
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = save_model(name, Path(scratch) / "base-model")
        settings = {"target_modules": TARGETS.get(name, "all-linear")}
        adapter = save_adapter(base, Path(scratch) / "checkpoint-10", **settings)
        theirs = _upstream(source, base, adapter, Path(scratch) / "theirs.gguf")
        try:
            pairs = normalise_for_export(open_adapter(adapter), open_base_model(base))
            export_lora(
                pairs,
                open_base_model(base),
                Path(scratch) / "ours.gguf",
                gguf_dtype="f32",
                naming=Naming(model_name="A"),
            )
        except PackagingError as error:
            return f"refused: {error.message}"
        if isinstance(theirs, str):
            return f"upstream's script fails: {theirs}"
        return _difference(read_gguf(Path(scratch) / "ours.gguf")[1], theirs)


def _upstream(source: Path, base: Path, adapter: Path, out: Path) -> dict[str, torch.Tensor] | str:
    """Tensors of upstream's file, or the last line of what its script said."""
    script = str(source / "convert_lora_to_gguf.py")
    command = [sys.executable, script, "--base", str(base), "--outtype", "f32", "--outfile", str(out), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1].replace("|", "/")[:140]
    tensors: dict[str, torch.Tensor] = read_gguf(out)[1]
    return tensors


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str:
    if set(ours) != set(theirs):
        missing, more = len(theirs.keys() - ours.keys()), len(ours.keys() - theirs.keys())
        return f"other tensors: {missing} only in upstream's file, {more} only in ours"
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if not different:
        return "equal"
    swapped = sum(ours[name].shape != theirs[name].shape for name in different)
    how = f"; {swapped} of them in shape" if swapped else ""
    return f"{len(different)} of {len(ours)} tensors differ, first {different[0]}{how}"
