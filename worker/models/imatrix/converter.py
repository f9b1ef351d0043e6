"""An instance of upstream's converter, for its tensor mapping alone: nothing is converted or written with it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from api_client.contract.errors import ErrorCode
from config.roots import NOWHERE_ELSE, Roots
from worker.models.convert.plan import UNUSED_OUTPUT, read_class, shown_weights, streamed_class
from worker.models.convert.staging import stage
from worker.models.convert.tokenizer import tokenizer_beside
from worker.models.convert.upstream import Upstream, shown_changes
from worker.models.convert.upstream_errors import upstream_errors
from worker.models.convert.weights import MergedWeights
from worker.models.hardening import locked_down

if TYPE_CHECKING:
    from worker.models.imatrix.names import Converter


def open_converter(upstream: Upstream, weights: MergedWeights, allowed_roots: Roots = NOWHERE_ELSE) -> Converter:
    """The converter for a model, shown a staged directory as for a conversion; reads no weights.

    The directory stays as long as the converter: some, such as Gemma 3's, read the tokenizer when they map a tensor.
    Extra prediction layers are left out (``no_mtp``): transformers does not run them.

    Raises:
        PackagingError: ``unsupported_architecture``, ``base_model_invalid``.
    """
    scratch = tempfile.mkdtemp(prefix="convert-")
    with (
        contextlib.ExitStack() as unfinished,
        locked_down(),
        torch.no_grad(),
        shown_weights(upstream, weights),
        upstream_errors(ErrorCode.BASE_MODEL_INVALID, "reading config.json"),
    ):
        unfinished.callback(shutil.rmtree, scratch, ignore_errors=True)
        staged = stage(
            Path(scratch),
            weights,
            tokenizer_beside(weights.base.directory, allowed_roots),
            shown_changes(weights.base.config, weights.config_changes(), upstream.conversion.TEXT_MODEL_MAP),
            card=None,
            allowed_roots=allowed_roots,
        )
        architecture, model_class = read_class(upstream, staged)
        # what has no name in the file raises as upstream has it, which who asks takes for an answer
        own = {"model_arch": model_class.model_arch, "no_mtp": True, "map_tensor_name": model_class.map_tensor_name}
        streamed = streamed_class(upstream, model_class, architecture, weights.names())
        mapping_class: Any = type(model_class.__name__, (streamed,), own)
        file_type = upstream.gguf.LlamaFileType.ALL_F32
        converter: Converter = mapping_class(staged, file_type, staged / UNUSED_OUTPUT)
        unfinished.pop_all()
        weakref.finalize(converter, shutil.rmtree, scratch, ignore_errors=True)
    return converter
