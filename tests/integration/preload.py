"""What the fork server of the tests loads: what every stage's process needs, and the small stages."""

from tests.integration import small_stages
from worker.service.supervisor import child

__all__ = ["child", "small_stages"]
