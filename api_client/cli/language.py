"""Which language the command line speaks, and its phrases. JSON output is the same in both."""

from __future__ import annotations

from api_client.language import Language

PHRASES: dict[str, tuple[str, str]] = {
    "age": ("age", "时间"),
    "all_done": ("no job is queued or running", "没有排队或运行中的作业"),
    "artifact": ("file", "文件"),
    "attempt": ("attempt", "尝试"),
    "base_model": ("base model", "基础模型"),
    "best": ("best", "最佳"),
    "best_fitting": (
        "* recommended here; the best that fits is {quant_type}",
        "* 为推荐类型；能容纳的最高质量类型为 {quant_type}",
    ),
    "bits_per_weight": ("bits/weight", "位/权重"),
    "before_stop": ("last before early stopping", "早停前最后一个"),
    "cancel_hint": ("stop it: trainpack cancel {id}", "停止作业：trainpack cancel {id}"),
    "cancelling": ("cancelling", "正在取消"),
    "cause": ("Cause", "原因"),
    "cancelling_job": ("Cancelling job {id}", "正在取消作业 {id}"),
    "checking": ("Looking at this machine", "正在检查本机"),
    "checkpoint": ("checkpoint", "检查点"),
    "console_login": (
        "Console at {url}, login with a token; Ctrl-C stops it",
        "控制台：{url}，使用令牌登录；Ctrl-C 停止",
    ),
    "console_open": ("Console at {url}, no login; Ctrl-C stops it", "控制台：{url}，无需登录；Ctrl-C 停止"),
    "context_long": ("the model was trained for {trained} tokens of context", "模型训练时的上下文长度为 {trained}"),
    "copied": ("copied", "已复制"),
    "created": ("submitted", "提交"),
    "description": ("description", "说明"),
    "draining": ("draining", "正在排空"),
    "downloaded": ("downloaded", "已下载"),
    "duration": ("took", "用时"),
    "error": ("Error", "错误"),
    "family": ("family", "系列"),
    "fits": ("fits", "可容纳"),
    "imatrix": ("imatrix", "重要性矩阵"),
    "interrupted": ("Interrupted", "已中断"),
    "job": ("job", "作业"),
    "job_goes_on": ("The job goes on without this window.", "窗口关闭后作业仍会继续运行。"),
    "jobs_go_on": ("The jobs go on without this window.", "窗口关闭后这些作业仍会继续运行。"),
    "jobs_waiting": ("waiting", "等待"),
    "kept": ("already there", "已存在"),
    "kind": ("kind", "类型"),
    "labels": ("labels", "标签"),
    "kld_999": ("99.9 % KLD", "99.9% KLD"),
    "last_seen": ("last seen", "最近心跳"),
    "latest": ("latest", "最新"),
    "left": ("{time} left", "剩余 {time}"),
    "mean_kld": ("mean KLD", "平均 KLD"),
    "measuring": ("Reading the model's headers", "正在读取模型头信息"),
    "memory": ("memory to run", "运行内存"),
    "needs_matrix": ("needs one", "必需"),
    "no_jobs": ("no jobs", "没有作业"),
    "no_outputs": ("no outputs yet: the job is {state}", "尚无输出：作业状态为 {state}"),
    "no_workers": (
        "no worker is running: jobs wait until one starts (`trainpack worker` or `trainpack up`)",
        "没有 worker 在运行：作业会等待（用 `trainpack worker` 或 `trainpack up` 启动）",
    ),
    "no": ("no", "否"),
    "nothing_fits": (
        "nothing fits: shorten the context or choose a smaller model",
        "均无法容纳：请缩短上下文或换用更小的模型",
    ),
    "base_taken": ("Base model {base}, which {file} names", "基础模型 {base}（由 {file} 指明）"),
    "not_visible": (
        "{field}: {path} is not visible here; the worker will look for it",
        "{field}：本机看不到 {path}，由 worker 查找",
    ),
    "passed_over": (
        "{name} is newer than {chosen}, but cannot be packaged: {problem}",
        "{name} 比 {chosen} 新，但无法打包：{problem}",
    ),
    "oldest": ("oldest", "最久等待"),
    "output_dir": ("output directory", "输出目录"),
    "outputs": ("Outputs", "输出文件"),
    "quality": ("expected quality", "预期质量"),
    "quality_measured": (
        "Against {reference}, on {source}; scored tokens: {parts}",
        "参照：{reference}；文本：{source}；计分 token 数：{parts}",
    ),
    "quality_nothing_learnt": (
        "The adapter changes nothing that can be measured on this text, so there is no retention.",
        "在此文本上适配器没有可测得的影响，因此没有保留率。",
    ),
    "quant_type": ("quant type", "量化类型"),
    "quant_types": ("quant types", "量化类型"),
    "queue": ("queue", "队列"),
    "recommend_head": (
        "{target}: {memory}; context {context}: KV cache {cache}, working buffers about {buffers}",
        "{target}：{memory}；上下文 {context}：KV 缓存 {cache}，计算缓冲约 {buffers}",
    ),
    "redis_away": ("Redis does not answer; still trying", "Redis 无响应，继续重试"),
    "remedy": ("Remedy", "处理"),
    "retention": ("training kept", "训练保留率"),
    "running": ("running", "运行"),
    "same_top": ("same top token", "首选一致率"),
    "saved": ("saved", "保存时间"),
    "sha256": ("sha256", "sha256"),
    "size": ("size", "大小"),
    "slots": ("slots", "槽位"),
    "stage": ("stage", "阶段"),
    "quantize_stopped": (
        "Stopped. What is done is kept; the same command goes on from there.",
        "已停止。已完成的部分会保留，重新执行同一命令即可继续。",
    ),
    "starting": ("Starting Valkey, SeaweedFS and a worker", "正在启动 Valkey、SeaweedFS 和 worker"),
    "state": ("state", "状态"),
    "stopping": ("Stopping; running stages are handed back", "正在停止；运行中的阶段会交还"),
    "task": ("task", "训练任务"),
    "template": ("template", "模板"),
    "title": ("title", "名称"),
    "unexpected": (
        "trainpack itself failed: {what}. Details are in {path}",
        "trainpack 自身出错：{what}。详情见 {path}",
    ),
    "up_already": ("The stack is running already", "服务已在运行"),
    "up_hint": (
        "In another terminal: trainpack submit ..., trainpack watch. Ctrl-C stops everything.",
        "在另一个终端使用 trainpack submit、trainpack watch。按 Ctrl-C 停止全部服务。",
    ),
    "up_ready": ("Ready", "已就绪"),
    "url": ("URL", "URL"),
    "watch_again": ("follow it again: trainpack watch {id}", "继续查看：trainpack watch {id}"),
    "watch_hint": ("follow it: trainpack watch {id}", "查看进度：trainpack watch {id}"),
    "weights": ("weights", "权重"),
    "worker": ("worker", "worker"),
    "workers": ("workers", "worker"),
    "yes": ("yes", "是"),
}

STATES_ZH = {
    "queued": "排队",
    "running": "运行中",
    "succeeded": "成功",
    "failed": "失败",
    "cancelled": "已取消",
    "pending": "等待",
    "retried": "已重试",
    "rescued": "已救回",
    "crashed": "崩溃",
    "handed_back": "已交还",
    "adapter": "适配器",
    "full": "完整权重",
    "incomplete": "不完整",
}


def phrase(language: Language, key: str, **values: object) -> str:
    """A phrase, with its placeholders filled in."""
    english, chinese = PHRASES[key]
    return (chinese if language is Language.ZH else english).format(**values)


def state_word(language: Language, state: str) -> str:
    """A state, outcome or kind as a word."""
    word = state.replace("_", " ")
    return STATES_ZH.get(state, word) if language is Language.ZH else word
