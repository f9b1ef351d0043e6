"""How much room a job takes on which disk. Pure.

Files are written once, to scratch. Publishing links or renames them where scratch and the output directory are on one
disk, and copies them where they are on two.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiskNeed:
    """One file system.

    Attributes:
        place: A directory on it.
        needed_bytes: What the job writes there; None where that is not known beforehand.
        free_bytes: Room there is; None where nobody said.
    """

    place: str
    needed_bytes: int | None
    free_bytes: int | None

    @property
    def too_little(self) -> bool:
        """Whether it is known not to fit."""
        return None not in (self.needed_bytes, self.free_bytes) and (self.needed_bytes or 0) > (self.free_bytes or 0)


def disk_needs(
    made_bytes: int | None, published_bytes: int | None, output: DiskNeed, scratch: DiskNeed | None
) -> tuple[DiskNeed, ...]:
    """What each disk needs.

    Args:
        made_bytes: All that the job writes while it works.
        published_bytes: What goes into the output directory.
        output: The output directory's disk; what it needs is not looked at.
        scratch: That of scratch, where it is another one.
    """
    if scratch is None:
        return (DiskNeed(output.place, made_bytes, output.free_bytes),)
    return (
        DiskNeed(output.place, published_bytes, output.free_bytes),
        DiskNeed(scratch.place, made_bytes, scratch.free_bytes),
    )
