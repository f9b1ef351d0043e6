"""Words for the states of jobs and stages, outcomes of attempts and kinds of checkpoints."""

from __future__ import annotations

from api_client.words.language import Language

STATES_ZH = {
    "queued": "排队",
    "running": "运行中",
    "succeeded": "成功",
    "failed": "失败",
    "cancelling": "正在取消",
    "cancelled": "已取消",
    "pending": "等待",
    "retried": "已重试",
    "rescued": "已救回",
    "crashed": "崩溃",
    "handed_back": "已交还",
    "label_limit": "标签上限",
    "paused": "已暂停",
    "no_worker": "没有 worker",
    "host_away": "主机离线",
    "draining": "worker 正在停止",
    "newer_worker": "需要更新的 worker",
    "retry_at": "等待重试",
    "publishing": "等待发布",
    "busy": "槽位已满",
    "adapter": "适配器",
    "full": "完整权重",
    "incomplete": "不完整",
}


def state_word(language: Language, state: str) -> str:
    """A state, outcome or kind as a word."""
    word = state.replace("_", " ")
    return language.choose(word, STATES_ZH.get(state, word))
