"""The libraries may parse a model directory, never run it: no code from it, no network, no other model it names.

The conversion package opens tokenizers with ``trust_remote_code=True`` in a dozen places, and transformers then imports
the Python files that ``auto_map`` names; a config can also ask for a pretrained part, which transformers fetches while
it builds the model. Four independent locks are on while :func:`locked_down` is entered:

1. ``AutoConfig`` and ``AutoTokenizer`` get ``trust_remote_code=False`` and ``local_files_only=True``, whatever was
   asked;
2. the one function of transformers that executes a module file raises :class:`ModelCodeRefusedError`;
3. so does loading the weights of any model but, where that is asked for, those of one directory;
4. huggingface_hub is offline.

(The staging directory, which holds no Python file, no pickle and no ``auto_map``, is a fifth: see ``staging``.)
The locks are process-wide while they are on, so entering is serialised by a lock of our own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

_ENTERED = threading.RLock()
_MISSING = object()


class ModelCodeRefusedError(Exception):
    """Something asked to import Python code from a model directory or repository, or to load another model."""


@contextmanager
def locked_down(*, weights_from: Path | None = None) -> Iterator[None]:
    """Switch the locks on for the calls made inside, off again on leaving. Re-entrant, one thread at a time.

    Args:
        weights_from: The one directory whose weights transformers may load by itself; none where not given.
    """
    import huggingface_hub.constants as hub_constants
    from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, dynamic_module_utils

    with _ENTERED, ExitStack() as stack:
        for auto_class in (AutoConfig, AutoTokenizer):
            stack.enter_context(replaced(auto_class, "from_pretrained", _local_and_untrusted(auto_class)))
        stack.enter_context(replaced(dynamic_module_utils, "get_class_in_module", _refuse_code))
        stack.enter_context(replaced(PreTrainedModel, "from_pretrained", classmethod(_only_from(weights_from))))
        stack.enter_context(replaced(hub_constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(_environment("HF_HUB_OFFLINE", "1"))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module or class for the time inside; an inherited one is uncovered again afterwards."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _local_and_untrusted(auto_class: Any) -> Any:
    original: Callable[..., Any] = auto_class.from_pretrained

    def from_pretrained(_cls: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["trust_remote_code"] = False
        kwargs["local_files_only"] = True
        return original(path, *args, **kwargs)

    return classmethod(from_pretrained)


def _only_from(directory: Path | None) -> Callable[..., Any]:
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(model_class: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if directory is not None and isinstance(path, Path) and path == directory:
            return original(model_class, path, *args, **kwargs)
        raise ModelCodeRefusedError(
            f"{model_class.__name__} was to be loaded from {path}; no other model is ever loaded"
        )

    return from_pretrained


def _refuse_code(class_name: str, module_path: Any, **_kwargs: Any) -> Any:
    raise ModelCodeRefusedError(f"{class_name} is Python code of the model ({module_path}); such code is never run")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
