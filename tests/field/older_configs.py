"""Makes ``data/configs-4.57.3.json``: the field's small configs as transformers 4 saves them.

Two steps, since transformers 4 and 5 do not fit into one environment::

    python -m tests.field.older_configs settings > settings.json
    python -m venv v4 && v4/bin/pip install transformers==4.57.3
    v4/bin/python tests/field/older_configs.py save < settings.json > tests/field/data/configs-4.57.3.json

The second step imports nothing of this repository. Architectures that transformers 4 does not know are left out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_TOKENS = 400


def settings() -> dict[str, Any]:
    """Architecture -> model type and small settings, by the installed transformers 5."""
    from huggingface_hub.errors import StrictDataclassClassValidationError

    from tests.field.architectures import NotBuiltError, all_architectures, model_class, small_settings

    found = {}
    for architecture in all_architectures():
        try:
            config_class = model_class(architecture).config_class
            found[architecture] = [config_class.model_type, small_settings(config_class, _TOKENS)]
        except (NotBuiltError, StrictDataclassClassValidationError):
            continue  # no model of it is built here either
    return found


def saved(asked: dict[str, Any]) -> dict[str, Any]:
    """Architecture -> ``config.json``, by the installed transformers 4."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = {}
    for architecture, (model_type, small) in asked.items():
        if model_type not in CONFIG_MAPPING:
            continue
        try:
            config = CONFIG_MAPPING[model_type](**older(small))
        except (ValueError, TypeError) as error:
            sys.stderr.write(f"{architecture}: {error}\n")
            continue
        config.architectures = [architecture]
        found[architecture] = json.loads(config.to_json_string(use_diff=True))
    return found


def older(small: dict[str, Any]) -> dict[str, Any]:
    """The same settings under the names of transformers 4: what turns stood in keys of its own."""
    found = {key: older(value) if isinstance(value, dict) else value for key, value in small.items()}
    rope = found.pop("rope_parameters", None)
    if not rope or "rope_theta" not in rope:
        return found
    found["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        found["partial_rotary_factor"] = rope["partial_rotary_factor"]
    sections = {key: rope[key] for key in ("mrope_section", "mrope_interleaved") if key in rope}
    if sections:
        found["rope_scaling"] = {"type": "default", "rope_type": "default", **sections}
    return found


if __name__ == "__main__":
    made = settings() if sys.argv[1] == "settings" else saved(json.load(sys.stdin))
    rows = (f"{json.dumps(name)}: {json.dumps(made[name], sort_keys=True)}" for name in sorted(made))
    sys.stdout.write("{\n" + ",\n".join(rows) + "\n}\n")
