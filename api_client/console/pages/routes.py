"""The pages' routes, as the application includes them. Reading order: ``jobs`` -> ``job`` -> ``new_job``."""

from __future__ import annotations

from fastapi import APIRouter

from api_client.console.pages import chosen, entry, fleet, job, jobs, new_job, overview
from api_client.console.pages.entry import error_page

__all__ = ["error_page", "router"]

router = APIRouter(include_in_schema=False)
for part in (entry.router, jobs.router, chosen.router, job.router, new_job.router, fleet.router, overview.router):
    router.include_router(part)
