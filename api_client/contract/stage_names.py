"""Names of stages as Redis holds them: a newer version may know more of them than this one."""

from __future__ import annotations

from typing import cast

from api_client.contract.job import StageName


class ForeignStage(str):
    """A stage that only a newer version knows. It is passed on as it is: its message sent again, its lease rescued."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The name, as an enum's member has it."""
        return str(self)


def stage_named(text: str) -> StageName:
    """The stage of that name; a stand-in for one that this version does not know. For passing on, never for running."""
    try:
        return StageName(text)
    except ValueError:
        return cast(StageName, ForeignStage(text))
