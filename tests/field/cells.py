"""What becomes of one architecture: every step of a job on its smallest model, against PEFT and upstream."""

from __future__ import annotations

import json
import shutil
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from api_client.contract.errors import PackagingError
from api_client.contract.job import StageName
from api_client.contract.request import PackagingRequest
from config.settings import StageSettings
from tests.field.architectures import NotBuiltError, model_class, save_convertible
from tests.field.hidden import LENGTH, NoVectorError, angle, by_llama_cpp, by_transformers
from tests.field.vocabularies import known_with_ends
from tests.harness import run_stages, stage_settings
from worker.models.convert.repairs import completed_configs, repaired
from worker.models.convert.upstream import load_upstream
from worker.models.gguf.reader import GGUFFile, open_gguf
from worker.stages.context import StageResult

BUILT, CONVERTED, EQUAL, K_QUANT, I_QUANT, LORA, COMPUTES = (
    "built", "merged and converted", "equals PEFT and upstream", "Q4_K_M, verified", "IQ3_XXS with matrix, verified",
    "LoRA file adds what the merge does", "llama.cpp computes what transformers does",
)  # fmt: skip
COLUMNS = (BUILT, CONVERTED, EQUAL, K_QUANT, I_QUANT, LORA, COMPUTES)
"""One question each, in the order of a job."""
YES = "yes"
REPAIRED = {
    "BertForSequenceClassification": "upstream leaves out the pooler, which the head needs",
    "KimiLinearForCausalLM": "upstream does not know the names that transformers 5 saves",
    "KimiLinearModel": "upstream does not know the names that transformers 5 saves",
    "MiMoV2FlashForCausalLM": "upstream announces three prediction layers that are not there",
    "ModernBertForSequenceClassification": "upstream drops the labels of two classes, and gives up",
    "ModernBertForMaskedLM": "upstream does not know the head that it leaves out elsewhere",
    "RobertaForSequenceClassification": "upstream drops the labels of two classes, and the file does not load",
    "XLMRobertaForSequenceClassification": "upstream drops the labels of two classes, and the file does not load",
    "Qwen3VLMoeForConditionalGeneration": "upstream turns experts round that transformers 5 saves as they are",
}
"""Where upstream's own converter is wrong or gives up on the same model, and the last column is the judge."""
_TEXT_ONLY = {
    "Step3p7ForConditionalGeneration": ".*vision_model.*",
    "Glm4vMoeForConditionalGeneration": ".*visual.*",
}
"""Towers on which an adapter is refused by name: their layers are cut up when loaded, or convolve in three axes."""
UNCAUGHT = "fault of ours"
"""How a cell begins that an error without a code ended."""
_SAME = 2e-4
_NOT_COMPARED = ("general.", "GGUF.", "tokenizer.chat_template")


@dataclass
class Trial:
    """One architecture under way.

    Attributes:
        architecture: Its name in ``config.json``.
        directory: An empty directory for everything.
        done: Results of the stages that K-quant, i-quant and comparison have in common.
    """

    architecture: str
    directory: Path
    done: dict[StageName, StageResult] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The base model."""
        return self.directory / "base"

    @property
    def checkpoint(self) -> Path:
        """LoRA on all its linear layers."""
        return self.directory / "run" / "checkpoint-1"

    @property
    def merged(self) -> Path:
        """Our unquantized file of base and adapter."""
        return Path(self.done[StageName.CONVERT].artifacts[0].path)


def cells(architecture: str, directory: Path) -> dict[str, str]:
    """Every column's outcome: ``yes``, or why not. Columns that need one that failed are left out."""
    with known_with_ends():
        return _cells(architecture, directory)


def _cells(architecture: str, directory: Path) -> dict[str, str]:
    trial = Trial(architecture, directory)
    found = {BUILT: _told(lambda: _build(trial))}
    if found[BUILT] != YES:
        return found
    found[CONVERTED] = _told(lambda: _converted(trial))
    if found[CONVERTED] != YES:
        return found
    found[EQUAL] = _told(lambda: _equal(trial))
    both = _told(lambda: _quantized(trial, "Q4_K_M", "IQ3_XXS"))
    found[K_QUANT] = both if both == YES else _told(lambda: _quantized(trial, "Q4_K_M"))
    found[I_QUANT] = both
    found[LORA] = _told(lambda: _exported(trial))
    found[COMPUTES] = _told(lambda: _computes(trial))
    return found


def _told(step: Callable[[], str | None]) -> str:
    try:
        return step() or YES
    except (NotBuiltError, NoVectorError) as error:
        return str(error)
    except PackagingError as error:
        return f"{error.code}: {error.message}"[:240]
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{UNCAUGHT}: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"[:240]


def _build(trial: Trial) -> None:
    unused = save_convertible(trial.architecture, trial.directory).left_out
    torch.manual_seed(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(trial.architecture).from_pretrained(trial.base, dtype=torch.float32)
        tuned = _tuned(model, _TEXT_ONLY.get(trial.architecture))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                # what has no place in the file stays as PEFT begins it, and as it stays where training does not use it
                if "lora_A" in name or ("lora_B" in name and not _is_unused(name, unused)):
                    parameter.normal_(std=0.05)
        tuned.save_pretrained(trial.checkpoint)


def _tuned(model: Any, without: str | None) -> Any:
    """LoRA on all linear layers; of Mamba's, on those that PEFT can apply it to."""
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "exclude_modules": without}
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except ValueError as error:
        if "incompatible with Mamba" not in str(error):
            raise NotBuiltError(f"PEFT: {type(error).__name__}: {str(error).splitlines()[0][:160]}") from error
    settings["exclude_modules"] = ["out_proj", "conv1d"]
    return get_peft_model(model, LoraConfig(**settings))


def _is_unused(parameter: str, unused: Collection[str]) -> bool:
    module = parameter.removeprefix("base_model.model.").partition(".lora_")[0]
    return any(f"{name}.weight" in unused for name in (module, module.removeprefix("model."), f"model.{module}"))


def _request(trial: Trial, *quants: str) -> PackagingRequest:
    return PackagingRequest(
        base_model=trial.base,
        checkpoint=trial.checkpoint,
        output_dir=trial.directory / "out",
        quant_types=list(quants),
        gguf_dtype="f32",
        keep_unquantized=True,
        imatrix={"chunks": 1},
        projector="off",
        evaluation="off",
    )


def _converted(trial: Trial) -> None:
    scratch = trial.directory / "scratch"
    trial.done = run_stages(_request(trial, "Q4_K_M"), scratch, until=StageName.CONVERT, settings=_settings(trial))


def _quantized(trial: Trial, *quants: str) -> str | None:
    """The other stages of a job, from the file that is converted already."""
    results = run_stages(
        _request(trial, *quants),
        trial.directory / "scratch",
        until=StageName.VERIFY,
        settings=_settings(trial),
        done=trial.done,
    )
    loaded = results[StageName.VERIFY].facts["loaded"]
    assert isinstance(loaded, list)
    return None if len(loaded) == 1 + len(quants) else f"loaded: {', '.join(loaded)}"


def _settings(trial: Trial) -> StageSettings:
    """One thread: many trials share a machine, and llama.cpp's threads wait by spinning."""
    return stage_settings(trial.directory / "home", threads=1)


def _exported(trial: Trial) -> str | None:
    """The exported factors times their strength, added to the base's file, against the merged file."""
    request = PackagingRequest(
        template="lora_only",
        base_model=trial.base,
        checkpoint=trial.checkpoint,
        output_dir=trial.directory / "lora",
        gguf_dtype="f32",
    )
    scratch = trial.directory / "scratch-lora"
    results = run_stages(request, scratch, until=StageName.VERIFY, settings=_settings(trial))
    path = Path(results[StageName.EXPORT_LORA].artifacts[0].path)
    with open_gguf(path) as file:
        alpha = float(file.metadata["adapter.lora.alpha"].value)
    factors, base, merged = _values(path), _values(trial.directory / "base.gguf"), _values(trial.merged)
    for name, tensor in merged.items():
        added = 0.0
        if (a := factors.get(f"{name}.lora_a")) is not None:
            added = alpha / a.shape[-2] * (factors[f"{name}.lora_b"] @ a)
        error = float(np.abs(base[name] + added - tensor).max(initial=0.0))
        if error > 1e-3 * max(1.0, float(np.abs(tensor).max(initial=0.0))):
            return f"{name} is off by {error:.3g}"
    return None


def _computes(trial: Trial) -> str | None:
    """The base model's last hidden states, by llama.cpp in F32 and by transformers."""
    ids = [5 + 7 * at % 41 for at in range(LENGTH)]  # the smallest vocabularies have some fifty tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(trial.architecture).from_pretrained(trial.base, dtype=torch.float32).eval()
    apart = angle(by_llama_cpp(trial.directory / "base.gguf", ids), by_transformers(model, ids))
    return None if apart < _SAME else f"apart by {apart:.2g} (1 - cosine)"


def _equal(trial: Trial) -> str | None:
    """As :func:`_differs`, unless upstream's file is known to be the wrong one."""
    if trial.architecture in REPAIRED:
        return f"repaired: {REPAIRED[trial.architecture]}"
    return _differs(trial)


def _differs(trial: Trial) -> str | None:
    """Our merged file against upstream's of what PEFT merged: tensors by name, type, shape and bytes; keys."""
    merged = trial.directory / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(trial.architecture).from_pretrained(trial.base, dtype=torch.float32)
        PeftModel.from_pretrained(model, trial.checkpoint).merge_and_unload().save_pretrained(merged)
    for file in trial.base.iterdir():
        if not (merged / file.name).exists() and not file.name.startswith("model"):
            shutil.copy(file, merged)
    config = json.loads((merged / "config.json").read_text("utf-8"))
    (merged / "config.json").write_text(json.dumps(repaired(config)), "utf-8")
    theirs = _upstream(merged, trial.directory / "theirs.gguf")
    mine, other = _tensors(trial.merged), _tensors(theirs)
    different = sorted(name for name in {*mine, *other} if mine.get(name) != other.get(name))
    if different:
        return f"{len(different)} tensors differ, first {different[0]}"
    keys = _different_keys(trial.merged, theirs)
    return f"{len(keys)} keys differ, first {keys[0]}" if keys else None


def _upstream(model: Path, out: Path) -> Path:
    upstream = load_upstream()
    with warnings.catch_warnings(), torch.inference_mode(), completed_configs(upstream):
        warnings.simplefilter("ignore")
        hparams = upstream.conversion.ModelBase.load_hparams(model, False)
        architecture = upstream.conversion.get_model_architecture(hparams, upstream.conversion.ModelType.TEXT)
        found = upstream.model_class(architecture)
        if hasattr(found, "opt_num_mtp_layers"):  # transformers saves none; this is upstream's own switch, --no-mtp
            found = type(found.__name__, (found,), {"model_arch": found.model_arch, "no_mtp": True})
        found(model, upstream.gguf.LlamaFileType.ALL_F32, out, model_name="M").write()
    return out


def _tensors(path: Path) -> Mapping[str, tuple[Any, ...]]:
    with open_gguf(path) as file:
        return {
            tensor.name: (tensor.type.name, tuple(tensor.shape), bytes(file.tensor_bytes(tensor)))
            for tensor in file.tensors
        }


def _values(path: Path) -> Mapping[str, Any]:
    """Name -> array, outermost axis first; other types than F32 and F16 are not expected."""
    kinds = {"F32": np.float32, "F16": np.float16}
    return {
        name: np.frombuffer(data, kinds[kind]).astype(np.float32).reshape(shape[::-1])
        for name, (kind, shape, data) in _tensors(path).items()
    }


def _different_keys(ours: Path, theirs: Path) -> list[str]:
    with open_gguf(ours) as mine, open_gguf(theirs) as other:
        names = [name for name in {*mine.metadata, *other.metadata} if not name.startswith(_NOT_COMPARED)]
        return sorted(name for name in names if _plain(mine, name) != _plain(other, name))


def _plain(file: GGUFFile, name: str) -> Any:
    value = file.metadata.get(name)
    return value.value.tolist() if value is not None and hasattr(value.value, "tolist") else value and value.value
