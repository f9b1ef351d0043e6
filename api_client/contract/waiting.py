"""Why a job waits: one reason each, since when, and what frees it. Every face shows this one value.

``api_client.ledger.waiting`` finds it; the rows here say what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from api_client.contract.enum_rows import named_member
from api_client.words.formatting import format_time, one_line
from api_client.words.language import Language


@dataclass(frozen=True)
class WaitRow:
    """What is said of a reason; ``{what}``, ``{limit}`` and ``{until}`` are filled in.

    Attributes:
        why_en: Why it waits.
        frees_en: What ends the waiting, and what one can do for it.
        why_zh: As ``why_en``, in Chinese.
        frees_zh: As ``frees_en``, in Chinese.
    """

    why_en: str
    frees_en: str
    why_zh: str
    frees_zh: str


class WaitReason(StrEnum):
    """Why a stage does not run."""

    row: WaitRow

    def __new__(cls, name: str, row: WaitRow | None = None) -> Self:
        """A row; ``WaitReason("busy")``, which looks one up, passes its name alone."""
        assert row is not None, f"the reason {name} has no row"
        member = named_member(cls, name)
        member.row = row
        return member

    LABEL_LIMIT = (
        "label_limit",
        WaitRow(
            "label {what} may run {limit} at once, and that many run",
            "a running stage with {what} ends, or the limit is raised: `trainpack limits`",
            "标签 {what} 同时最多运行 {limit} 个，已达上限",
            "某个带有 {what} 的阶段结束，或用 `trainpack limits` 提高上限",
        ),
    )
    PAUSED = (
        "paused",
        WaitRow(
            "{what} is paused",
            "someone lets it go on: `trainpack resume {what}`",
            "{what} 已暂停",
            "执行 `trainpack resume {what}` 恢复",
        ),
    )
    NO_WORKER = (
        "no_worker",
        WaitRow(
            "no worker takes from {what}",
            "a worker starts: `trainpack worker`, or `trainpack up` on one's own machine",
            "没有 worker 从 {what} 取任务",
            "启动一个 worker：`trainpack worker`，本机可用 `trainpack up`",
        ),
    )
    HOST_AWAY = (
        "host_away",
        WaitRow(
            "host {what}, which has the job's files, has no worker",
            "a worker starts on {what}; once the host has been silent for a lease time, others make the files again",
            "存有作业文件的主机 {what} 上没有 worker",
            "在 {what} 上启动 worker；该主机静默超过一个租约时间后，由其他主机重新生成文件",
        ),
    )
    DRAINING = (
        "draining",
        WaitRow(
            "all workers that take from {what} are stopping",
            "another worker starts",
            "从 {what} 取任务的 worker 都在停止",
            "启动另一个 worker",
        ),
    )
    NEWER_WORKER = (
        "newer_worker",
        WaitRow(
            "a newer trainpack stored the job (schema {what}), and no worker of that version runs",
            "a worker of that version starts",
            "作业由更新版本的 trainpack 存入（schema {what}），没有该版本的 worker",
            "启动该版本的 worker",
        ),
    )
    RETRY_AT = (
        "retry_at",
        WaitRow(
            "the last attempt failed for a passing reason; the next one comes at {until}",
            "that time comes",
            "上次尝试因暂时性原因失败，{until} 再试",
            "到时自动重试",
        ),
    )
    PUBLISHING = (
        "publishing",
        WaitRow(
            "another job publishes into {what}",
            "that job has published",
            "另一个作业正在向 {what} 发布",
            "该作业发布完成",
        ),
    )
    BUSY = (
        "busy",
        WaitRow(
            "all slots of the workers that take from {what} are in use",
            "a running stage ends, or another worker starts",
            "从 {what} 取任务的 worker 槽位已满",
            "某个阶段结束，或启动另一个 worker",
        ),
    )


class WaitingFor(BaseModel):
    """Why a job's stage waits now."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: WaitReason
    since: datetime | None = None
    """When the waiting began, as far as it is known."""
    until: datetime | None = None
    """When it ends, where that is known."""
    what: str = Field(default="", max_length=400)
    """The label, queue, host or directory that it is about."""
    limit: int | None = None
    """Of a label: how many may run at once."""
    why: str = ""
    """The reason as a sentence; in English unless the reader asked otherwise."""
    frees: str = ""
    """What ends the waiting, as a sentence."""

    def told(self, language: Language = Language.EN) -> WaitingFor:
        """The same with its sentences in a language."""
        row, until = self.reason.row, "" if self.until is None else format_time(self.until)
        values = {"what": one_line(self.what), "limit": self.limit if self.limit is not None else "?", "until": until}
        why, frees = language.choose(row.why_en, row.why_zh), language.choose(row.frees_en, row.frees_zh)
        return self.model_copy(update={"why": why.format(**values), "frees": frees.format(**values)})
