"""Every text of the pages, English and Chinese, in one table. Words shared with the command line come from there.

Names of templates, quant types and errors belong to the contract and are not repeated here.
"""

from __future__ import annotations

from typing import Final

from api_client.contract.artifacts import ArtifactKind
from api_client.contract.field_types import Bilingual
from api_client.contract.request_fields import FIELDS
from api_client.contract.stages import StageName
from api_client.words.language import Language
from api_client.words.phrases import PHRASES

TEXTS: Final[dict[str, tuple[str, str]]] = {
    # frame
    "skip": ("Skip to content", "跳到正文"),
    "pages": ("Pages", "页面"),
    "jobs": ("Jobs", "作业"),
    "new_job": ("New job", "新建作业"),
    "workers_page": ("Workers", "Worker"),
    "queues_page": ("Queues", "队列"),
    "other_language": ("中文", "English"),
    "switch_language": ("Switch to Chinese", "切换为英文"),
    "log_out": ("Log out", "退出"),
    "log_in": ("Log in", "登录"),
    "role.read": ("read", "只读"),
    "role.submit": ("submit", "提交"),
    "role.operate": ("operate", "运维"),
    "open_console": ("No login: open on this machine only.", "无需登录，仅限本机。"),
    "times": ("Times are {zone}.", "时间均为 {zone}。"),
    "no_script": ("Live updates need JavaScript.", "实时更新需要启用 JavaScript。"),
    "refresh": ("Refresh", "刷新"),
    "live": ("Live", "实时"),
    "live_lost": ("Connection lost, trying again", "连接中断，正在重试"),
    "live_ended": ("Ended", "已结束"),
    # jobs
    "jobs_head": ("Packaging jobs", "打包作业"),
    "any_state": ("Any state", "全部状态"),
    "filter": ("Filter", "筛选"),
    "filter_jobs": ("Filter jobs", "筛选作业"),
    "clear_filter": ("Clear", "清除"),
    "label": ("Label", "标签"),
    "label_hint": ("key=value, several with commas", "key=value，多个用逗号分隔"),
    "label_problem": (
        "{given} is not of the form key=value. Write e.g. team=search.",
        "{given} 不是 key=value 形式，例如 team=search。",
    ),
    "since": ("Submitted within", "提交时间"),
    "any_time": ("Any time", "不限"),
    "last_hour": ("Last hour", "最近 1 小时"),
    "last_day": ("Last 24 hours", "最近 24 小时"),
    "last_week": ("Last 7 days", "最近 7 天"),
    "since_given": ("Since {when}", "自 {when} 起"),
    "stage_now": ("Stage", "阶段"),
    "no_jobs_yet": ("No jobs yet", "还没有作业"),
    "no_jobs_yet_hint": (
        "Package a finished training run, here or with `trainpack submit`.",
        "在此页面或用 `trainpack submit` 打包已完成的训练。",
    ),
    "no_match": ("No job matches this filter", "没有符合条件的作业"),
    "no_match_hint": (
        "Finished jobs are kept for a limited time. Widen the filter to see more.",
        "已结束的作业只保留一段时间。请放宽筛选条件。",
    ),
    "no_more": ("No older jobs", "没有更早的作业"),
    "older": ("Older", "更早"),
    "newest": ("Newest", "最新"),
    "jobs_shown": ("{count} shown", "显示 {count} 个"),
    # job
    "asked": ("What was asked for", "打包请求"),
    "stages": ("Stages", "阶段"),
    "stage_list": ("Stages of this job", "作业各阶段"),
    "of_attempts": ("attempt {number}", "第 {number} 次"),
    "attempt_line": ("Attempt {number} on {worker}", "第 {number} 次尝试（{worker}）"),
    "time_left": ("{time} left", "剩余 {time}"),
    "state_now": ("Job {id} is {state}", "作业 {id}：{state}"),
    "error_head": ("The job failed in stage {stage}", "作业在“{stage}”阶段失败"),
    "error_head_plain": ("The job failed", "作业失败"),
    "code": ("Code", "错误码"),
    "fact": ("What happened", "现象"),
    "files": ("Outputs", "输出文件"),
    "no_files": ("No outputs yet. They appear when publish has succeeded.", "尚无输出，发布成功后显示。"),
    "no_files_ended": ("This job has no outputs.", "该作业没有输出。"),
    "download": ("Download", "下载"),
    "download_file": ("Download {name}", "下载 {name}"),
    "file_type": ("Type", "类型"),
    "log": ("Log", "日志"),
    "log_of": ("Log of job {id}", "作业 {id} 的日志"),
    "show_kinds": ("Show", "显示"),
    "kind_other": ("Other", "其他"),
    "apply": ("Apply", "应用"),
    "no_log": ("Nothing logged yet.", "暂无日志。"),
    "no_log_of_kinds": ("No entry of the chosen kinds.", "所选类型没有日志。"),
    "log_cut": ("Older entries are left out.", "较早的条目已省略。"),
    "cancel": ("Cancel job", "取消作业"),
    "cancel_sure": (
        "Cancel this job? The running stage stops within seconds; files that are already published stay.",
        "确定取消该作业？运行中的阶段会在数秒内停止，已发布的文件会保留。",
    ),
    "cancel_yes": ("Yes, cancel it", "确定取消"),
    "replay": ("Replay", "重新执行"),
    "replay_from": ("From stage", "起始阶段"),
    "replay_auto": ("First stage that did not succeed", "首个未成功的阶段"),
    "replay_start": ("From the start", "从头开始"),
    "replay_sure": (
        "Earlier stages' files are checked and made again only where they are missing.",
        "之前阶段的文件会先校验，缺失时才重新生成。",
    ),
    "replay_yes": ("Replay now", "立即重新执行"),
    "started": ("Started", "开始"),
    "ended": ("Ended", "结束"),
    "again": ("Package again with these settings", "用相同设置新建作业"),
    # workers and queues
    "no_workers_head": ("No worker is running", "没有 worker 在运行"),
    "no_workers_hint": (
        "Jobs wait until one starts: `trainpack worker` or `trainpack up`.",
        "作业会等待，直到 worker 启动：`trainpack worker` 或 `trainpack up`。",
    ),
    "host": ("Host", "主机"),
    "device": ("Device", "设备"),
    "runs": ("Running now", "正在运行"),
    "idle": ("idle", "空闲"),
    "serving": ("serving", "服务中"),
    "heartbeat": ("Last heartbeat", "最近心跳"),
    "ago": ("{age} ago", "{age} 前"),
    "takes_from": ("Takes from", "消费队列"),
    "of_slots": ("{used} of {slots}", "{used} / {slots}"),
    "queues_head": ("Queues", "队列"),
    "due": ("Stages waiting", "等待的阶段"),
    "messages": ("Messages", "消息"),
    "takers": ("Workers taking", "消费的 worker"),
    "oldest_waits": ("Oldest waits", "最久等待"),
    "nobody_takes": ("nobody takes from it", "无 worker 消费"),
    "pause_place": ("Pause", "暂停"),
    "resume_place": ("Resume", "恢复"),
    "pauses_head": ("Paused", "已暂停"),
    "paused_by": ("by {who}, {age} ago", "由 {who} 暂停，{age} 前"),
    "limits_head": ("Stages at once by label", "各标签同时运行的阶段数"),
    "limit_hint": ("Empty: what the workers were started with.", "留空：worker 启动时的设置。"),
    "set_limit": ("Set", "设置"),
    "no_bound": ("no bound", "不限"),
    "waiting_count": ("{count} wait", "{count} 个等待"),
    "changes_head": ("Changes", "修改记录"),
    "queue_note": (
        "Heavy stages (merge, convert, quantize) and input/output stages wait apart; stages that need one host's "
        "scratch wait in that host's queue.",
        "合并、转换、量化等重阶段与读写阶段分开排队；需要某台主机临时目录的阶段在该主机的队列中等待。",
    ),
    # login and errors
    "login_head": ("Log in", "登录"),
    "token": ("Token", "令牌"),
    "token_hint": (
        "Operators hand out tokens. The browser keeps a session, not the token.",
        "令牌由运维人员发放，浏览器只保存会话。",
    ),
    "go_back": ("Back to the jobs", "返回作业列表"),
    "retry": ("Try again", "重试"),
    "status": ("Status", "状态码"),
    "error.401": ("Log in to go on", "请先登录"),
    "error.expired": ("Your session has ended", "会话已过期"),
    "error.403": ("Not allowed", "没有权限"),
    "error.404": ("There is no such page", "页面不存在"),
    "error.job": ("There is no such job", "作业不存在"),
    "error.unreachable": ("The service does not answer", "服务无响应"),
    "error.no_writes": ("The service takes nothing new", "服务无法写入"),
    "error.429": ("Too many requests", "请求过多"),
    "error.other": ("That did not work", "操作未成功"),
    "job_gone_hint": (
        "Finished jobs are kept for a limited time; their log lies beside the outputs.",
        "已结束的作业只保留一段时间，其日志保存在输出目录旁。",
    ),
    # new job: steps and fields, named as the training console names them
    "make_head": ("Package a training run", "打包训练产物"),
    "source": ("Training task", "训练任务选择"),
    "source.run": ("Run directory", "训练输出目录"),
    "source.task": ("Training task", "训练任务"),
    "source.paths": ("Plain paths", "直接填写路径"),
    "source_kind": ("What to package from", "打包来源"),
    "recent_tasks": ("Recent tasks", "最近的任务"),
    "look": ("Look it up", "读取"),
    "default": ("default", "默认"),
    "locked": ("locked", "锁定"),
    "locked_by": ("Locked by this template. Choose Custom to set them.", "由模板锁定，选择“自定义”后可修改。"),
    "switches_free": ("Set them freely; the rules are checked on start.", "可自由设置，开始时检查依赖关系。"),
    "on": ("On", "开启"),
    "off": ("Off", "关闭"),
    "checkpoint_step": ("LoRA checkpoint", "LoRA 检查点选择"),
    "checkpoint_reference": ("Checkpoint", "检查点"),
    "checkpoint_reference_hint": (
        "latest, best, or a name such as checkpoint-900.",
        "latest、best，或 checkpoint-900 这样的名称。",
    ),
    "weights_checkpoint": ("Checkpoint with full weights", "全量权重检查点"),
    "weights_checkpoint_hint": (
        "Empty: the base model itself is packaged. Else this checkpoint: a path, or of a run latest, best or its name.",
        "留空则打包基础模型本身；否则打包该检查点：路径，或训练中的 latest、best、检查点名称。",
    ),
    "checkpoints_first": (
        "Give the run's directory above and look it up to see its checkpoints.",
        "在上方填写训练输出目录并读取后，可查看检查点列表。",
    ),
    "no_checkpoints": ("No checkpoint to choose from", "检查点列表为空"),
    "step_number": ("step {step}", "第 {step} 步"),
    "best_by": ("best by {metric}", "按 {metric} 最佳"),
    "stopped_early": ("Early stopping ended the run at step {step}.", "训练在第 {step} 步因早停结束。"),
    "empty.directory_missing": ("The run's output directory does not exist.", "任务输出目录不存在。"),
    "empty.no_checkpoints": ("The directory has no checkpoint-* directory.", "目录下没有 checkpoint-* 子目录。"),
    "empty.not_lora": (
        "The run trained full weights: package it with “Quantize the base model”.",
        "该训练不是 LoRA：请使用“仅量化基础模型”模板。",
    ),
    "empty.all_incomplete": ("Every checkpoint is incomplete.", "所有检查点都不完整。"),
    "no_types": ("Quantize is off: no type to choose.", "未开启量化，无需选择类型。"),
    "type": ("Type", "类型"),
    "size_here": ("Size", "大小"),
    "recommended": ("recommended", "推荐"),
    "target": ("Where it will run", "运行设备"),
    "target.any": ("not said", "未指定"),
    "target.gpu-24g": ("GPU with 24 GB or more", "24 GB 及以上显卡"),
    "target.gpu-12g": ("GPU with 12 GB", "12 GB 显卡"),
    "target.gpu-8g": ("GPU with 8 GB", "8 GB 显卡"),
    "target.cpu": ("CPU of a worker", "worker 的 CPU"),
    "target.mobile": ("Phone with 4 GB", "4 GB 手机"),
    "context": ("Context, in tokens", "上下文长度（token）"),
    "memory_there": (
        "Memory there: {memory}. The KV cache of this context takes {cache}, working buffers about {buffers}.",
        "可用内存 {memory}；该上下文的 KV 缓存占 {cache}，计算缓冲约 {buffers}。",
    ),
    "fits_not": ("does not fit", "无法容纳"),
    "needs_imatrix": ("imatrix", "需重要性矩阵"),
    "fits": ("Fits", "按界限适配（fit）"),
    "fits_hint": (
        "The best file at a bound, e.g. fit:5.5GiB, fit:4.5bpw, fit:like:Q4_K_M, fit:target:gpu-8g, fit:kld:0.02;"
        " several with blanks between.",
        "在给定界限下的最佳文件，如 fit:5.5GiB、fit:4.5bpw、fit:like:Q4_K_M、fit:target:gpu-8g、fit:kld:0.02；"
        "多个用空格分隔。",
    ),
    "imatrix_note": (
        "Types marked imatrix need an importance matrix; one is computed unless you give it.",
        "标有“需重要性矩阵”的类型会自动计算重要性矩阵，也可自行提供。",
    ),
    "family.K": ("K-quants (recommended)", "K-Quant 系列（推荐）"),
    "family.legacy": ("Standard", "标准量化系列"),
    "family.IQ": ("IQ", "IQ 系列（智能量化）"),
    "family.float": ("Full precision", "全精度格式"),
    "sizes_of": ("Sizes are those of {model}.", "大小按 {model} 预测。"),
    "sizes_first": ("Sizes appear when the base model's path is known.", "填写基础模型路径后显示预测大小。"),
    "sizes_unknown": ("The sizes are not known: {why}", "无法预测大小：{why}"),
    "free_space": ("{free} free of {total}", "可用 {free}，共 {total}"),
    "free_unknown": ("Free space is not known: {why}", "无法获知剩余空间：{why}"),
    "too_little": (
        "Needed about {needed}, free {free}. Choose another directory or fewer types.",
        "约需 {needed}，可用 {free}。请更换目录或减少类型。",
    ),
    "more_options": ("More options", "更多选项"),
    "summary": ("Configuration summary", "配置摘要"),
    "flow": ("Steps", "执行流程"),
    "output_files": ("Output files", "输出文件"),
    "total": ("Total", "合计"),
    "start": ("Start packaging", "开始打包"),
    "not_given": ("not given", "未填写"),
    "none_chosen": ("none chosen", "未选择"),
    "problems": ("Not started: one thing to correct", "未能开始：有一处需要修改"),
    "form_used": (
        "This form has already started job {id}. Press start again to start another with these settings.",
        "该表单已启动作业 {id}。再次点击开始会用当前设置另建一个作业。",
    ),
    "updating": ("Updating", "正在更新"),
    "look_failed": (
        "The console did not answer, so this is not up to date. Press “Look it up” to try again.",
        "控制台未响应，此处不是最新内容。请点击“读取”重试。",
    ),
    **{f"stage.{stage.value}": (stage.spec.title_en, stage.spec.title_zh) for stage in StageName},
    **{f"artifact.{kind.value}": (kind.title_en, kind.title_zh) for kind in ArtifactKind},
    # log levels
    "level.warning": ("warning", "警告"),
    "level.error": ("error", "错误"),
    "level.debug": ("debug", "调试"),
}


FIELD_TEXTS: Final[dict[str, Bilingual]] = {
    **{f"field.{row.path}": row.control.label for row in FIELDS if row.control},
    **{f"hint.{row.path}": row.control.hint for row in FIELDS if row.control and row.control.hint},
    **{f"choice.{row.path}.{name}": said for row in FIELDS for name, said in row.choices.items()},
}
"""Labels, hints and choices of the new job page, from the table of request fields."""


def text(language: Language, key: str, **values: object) -> str:
    """A text with its placeholders filled in; ``KeyError`` for a key that no table has."""
    english, chinese = TEXTS.get(key) or FIELD_TEXTS.get(key) or PHRASES[key]
    template = language.choose(english, chinese)
    return template.format(**values) if values else template
