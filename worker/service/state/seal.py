"""Seals on what workers record of a stage: producers write to the same hashes, but do not have the workers' key.

A seal is an HMAC-SHA256 over the job's id, the stage, the request and options it was run for, and the recorded files
and facts. A record whose seal does not hold was written by no worker, or for another request; it is not believed. A
Redis script runs with the rights of whoever calls it, so neither scripts nor ACLs alone can tell these writes apart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping

from pydantic import SecretStr

from api_client.contract.job import StageName


class Seal:
    """Makes and checks seals.

    Args:
        key: The same on every worker. ``None``: nothing is sealed, and every record holds.
    """

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key.get_secret_value().encode() if key is not None else None

    def make(self, job_id: str, stage: StageName, job: Mapping[str, str], *, artifacts: str, facts: str) -> str:
        """The seal of a stage's result.

        Args:
            job_id: The job.
            stage: The stage.
            job: The job's hash; its request and options count.
            artifacts: As stored, JSON.
            facts: As stored, JSON.

        Returns:
            64 hexadecimal digits; empty without a key.
        """
        if self._key is None:
            return ""
        basis = [job_id, stage.value, job.get("request", ""), job.get("options", ""), artifacts, facts]
        return hmac.new(self._key, json.dumps(basis).encode(), hashlib.sha256).hexdigest()

    def holds(
        self, job_id: str, stage: StageName, job: Mapping[str, str], *, artifacts: str, facts: str, seal: str
    ) -> bool:
        """Whether a worker recorded this, for this request."""
        if self._key is None:
            return True
        made = self.make(job_id, stage, job, artifacts=artifacts, facts=facts)
        return hmac.compare_digest(made.encode(), seal.encode("utf-8", "replace"))
