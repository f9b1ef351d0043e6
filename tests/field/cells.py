"""What becomes of one architecture: every step of a job on its smallest model, against PEFT and upstream."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from api_client.contract.errors import PackagingError
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from tests.field.architectures import NotBuiltError, model_class, save_convertible
from tests.harness import run_stages
from worker.models.convert.repairs import completed_configs
from worker.models.convert.upstream import load_upstream
from worker.models.gguf.reader import open_gguf

COLUMNS = ("built", "packaged", "merge and conversion equal PEFT and upstream", "LoRA file")
QUANTS = ("Q4_K_M", "IQ3_XXS")
"""A K-quant, and an i-quant that needs a matrix, which the job computes."""
YES = "yes"


def cells(architecture: str, directory: Path) -> dict[str, str]:
    """Every column's outcome: ``yes``, or why not. Columns after one that failed for good are left out."""
    try:
        base = save_convertible(architecture, directory)
        checkpoint = _adapter(architecture, base, directory / "run" / "checkpoint-1")
    except NotBuiltError as error:
        return {"built": str(error)}
    except PackagingError as error:
        return {"built": _said(error)}
    found = {"built": YES}
    found["packaged"] = _told(lambda: _packaged(base, checkpoint, directory / "out"))
    found["merge and conversion equal PEFT and upstream"] = _told(
        lambda: _equal(architecture, base, checkpoint, directory)
    )
    found["LoRA file"] = _told(lambda: _exported(base, checkpoint, directory / "lora"))
    return found


def _told(step: Any) -> str:
    try:
        return str(step() or YES)
    except PackagingError as error:
        return _said(error)


def _said(error: PackagingError) -> str:
    return f"{error.code}: {error.message}"[:200].replace("|", "/")


def _adapter(architecture: str, base: Path, directory: Path) -> Path:
    """LoRA on all linear layers."""
    torch.manual_seed(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(architecture).from_pretrained(base, dtype=torch.float32)
        try:
            tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        except Exception as error:
            raise NotBuiltError(f"PEFT: {type(error).__name__}: {str(error).splitlines()[0][:160]}") from error
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.05)
        tuned.save_pretrained(directory)
    return directory


def _packaged(base: Path, checkpoint: Path, out: Path) -> None:
    """Merge, convert, matrix, quantize and verify, by the stages of a job."""
    request = PackagingRequest(
        base_model=base,
        checkpoint=checkpoint,
        output_dir=out,
        quant_types=list(QUANTS),
        gguf_dtype="f32",
        evaluation="off",
    )
    results = run_stages(request, out.parent / "scratch")
    loaded = results[StageName.VERIFY].facts["loaded"]
    assert len(loaded) == 1 + len(QUANTS), loaded


def _exported(base: Path, checkpoint: Path, out: Path) -> None:
    request = PackagingRequest(template="lora_only", base_model=base, checkpoint=checkpoint, output_dir=out)
    run_stages(request, out.parent / "scratch-lora", job_id="20260101-000000-bbbbbb")


def _equal(architecture: str, base: Path, checkpoint: Path, directory: Path) -> str | None:
    """Our merged file against upstream's converter on what PEFT merged: names, types, shapes and bytes of tensors."""
    merged = directory / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(architecture).from_pretrained(base, dtype=torch.float32)
        PeftModel.from_pretrained(model, checkpoint).merge_and_unload().save_pretrained(merged)
    for file in base.iterdir():
        if not (merged / file.name).exists() and not file.name.startswith("model"):
            shutil.copy(file, merged)
    theirs = _upstream(merged, directory / "theirs.gguf")
    ours = directory / "out" / "merged_model.gguf"
    if not ours.exists():
        return "not made"
    mine, other = _tensors(ours), _tensors(theirs)
    different = sorted(name for name in {*mine, *other} if mine.get(name) != other.get(name))
    return f"{len(different)} tensors differ, first {different[0]}" if different else None


def _upstream(model: Path, out: Path) -> Path:
    upstream = load_upstream()
    with warnings.catch_warnings(), torch.inference_mode(), completed_configs(upstream):
        warnings.simplefilter("ignore")
        hparams = upstream.conversion.ModelBase.load_hparams(model, False)
        architecture = upstream.conversion.get_model_architecture(hparams, upstream.conversion.ModelType.TEXT)
        made = upstream.model_class(architecture)(model, upstream.gguf.LlamaFileType.ALL_F32, out, model_name="M")
        made.write()
    return out


def _tensors(path: Path) -> Mapping[str, tuple[Any, ...]]:
    with open_gguf(path) as file:
        return {
            tensor.name: (tensor.type.name, tuple(tensor.shape), bytes(file.tensor_bytes(tensor)))
            for tensor in file.tensors
        }
