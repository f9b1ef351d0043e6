"""An instance of upstream's converter, for its tensor mapping alone: nothing is converted or written with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from api_client.errors import ErrorCode
from worker.convert.hardening import locked_down
from worker.convert.plan import upstream_errors
from worker.convert.upstream import Upstream

if TYPE_CHECKING:
    from worker.imatrix.names import Converter


def open_converter(upstream: Upstream, directory: Path) -> Converter:
    """The converter for a model directory; reads ``config.json`` and the headers of the weights.

    Extra prediction layers are left out (``no_mtp``): transformers does not run them.

    Raises:
        PackagingError: ``unsupported_architecture``, ``base_model_invalid``.
    """
    base = upstream.conversion.ModelBase
    with locked_down(), upstream_errors(ErrorCode.BASE_MODEL_INVALID, "reading config.json"):
        hparams = base.load_hparams(directory, False)
        architecture = upstream.conversion.get_model_architecture(hparams, upstream.conversion.ModelType.TEXT)
        model_class = upstream.model_class(architecture)
        mapping_class: Any = type(
            model_class.__name__, (model_class,), {"model_arch": model_class.model_arch, "no_mtp": True}
        )
        converter: Converter = mapping_class(
            directory, upstream.gguf.LlamaFileType.ALL_F32, directory / "not-written.gguf", hparams=hparams
        )
    return converter
