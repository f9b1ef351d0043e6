"""Conversion to GGUF: one pass over the base model, the overlay applied tensor by tensor, no merged model anywhere.

Reading order: ``pipeline`` (``convert``, the whole pass) -> ``staging`` (the small directory that the conversion
package is shown) -> ``upstream`` (that package, run with the locks of ``worker.models.hardening`` on) -> ``plan``
(which tensors, of which types, at which offsets) -> ``evaluate`` (one tensor's bytes) -> ``writer`` (many tensors in
parallel, hashed, resumable). Beside the path: ``tokenizer``, ``vocabulary``, ``nextn``, ``metadata``, ``companions``,
``lora``, ``merged``.

Only ``plan``, ``evaluate``, ``lora`` and ``merged`` import torch, and only when their functions are called.
"""
