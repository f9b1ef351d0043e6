"""The help in Chinese, by paragraph of the English one. Data only; a text that is not here stays English."""

from __future__ import annotations

from api_client.contract.field_types import FieldGroup
from api_client.contract.request_fields import FIELDS

_REQUEST_ZH = {
    text.en: text.zh
    for text in (
        *(group.value for group in FieldGroup),
        *(flag.about or row.about for row in FIELDS for flag in (row.flag, row.file_flag) if flag),
        *(twin.about for row in FIELDS if row.flag for twin in row.flag.twins),
    )
}
"""What the table of request fields says of its flags."""

HELP_ZH = {
    **_REQUEST_ZH,
    # headings and the words of the help itself
    "Arguments": "参数",
    "Choices": "可选项",
    "Commands": "命令",
    "Jobs": "作业",
    "Options": "选项",
    "Package": "打包",
    "This machine": "本机",
    "Install completion for the current shell.": "为当前 shell 安装命令补全。",
    "Show completion for the current shell, to copy it or customize the installation.": (
        "显示当前 shell 的补全脚本，便于复制或自定义安装。"
    ),
    "Show this message and exit.": "显示本帮助并退出。",
    "Print the version and exit.": "显示版本并退出。",
    "[bold]Examples[/bold]": "[bold]示例[/bold]",
    "[bold]Start here[/bold]": "[bold]从这里开始[/bold]",
    "trainpack up          [dim]# in another terminal: trainpack submit ..., trainpack watch[/dim]": (
        "trainpack up          [dim]# 在另一个终端：trainpack submit ...、trainpack watch[/dim]"
    ),
    # evaluate
    "Measure how far GGUF files are from the model they were made from.": "测量 GGUF 文件与其来源模型的差距。",
    "Mean Kullback-Leibler divergence with its error, the tail of it, how often the most probable token is the same; "
    "with an adapter also how much of the training each file keeps. Nothing is written.": (
        "给出平均 KL 散度及其误差、尾部分位数、首选 token 一致率；有适配器时还给出每个文件保留的训练比例。"
        "不写入任何文件。"
    ),
    "GGUF files, or first shards of split ones.": "GGUF 文件；分片文件给出第一个。",
    "What the files are compared with: the model's directory, or a GGUF file with --base.": (
        "比较的对象：模型目录；或 GGUF 文件（需同时给出 --base）。"
    ),
    "Directory of the base model that was tuned; gives the training kept.": (
        "微调所用的基础模型目录；由此得出训练保留率。"
    ),
    "The adapter that was merged.": "已合并的适配器。",
    "Text to measure on.": "用于测量的文本。",
    "Training or evaluation data to measure on: JSONL, JSON.": "用于测量的训练或评估数据：JSONL、JSON。",
    "Time to spend, about.": "大致用时（秒）。",
    "Measure on all of the text.": "使用全部文本测量。",
    "Compute in float32, without the rounding of inputs that llama.cpp does.": (
        "以 float32 计算，不做 llama.cpp 对输入的舍入。"
    ),
    # trainpack
    "Turns finished training runs into GGUF files: merge, convert, quantize, export.": (
        "将训练完成的模型打包为 GGUF 文件：合并、转换、量化、导出。"
    ),
    "Every command takes --json. Exit codes: 0 done, 1 the job failed, 2 bad request, 3 service not reachable; "
    "Ctrl-C is 130.": "所有命令都支持 --json。退出码：0 完成，1 作业失败，2 请求有误，3 服务不可达；Ctrl-C 为 130。",
    "Print JSON instead of text.": "输出 JSON。",
    # limits, fairness, pause, resume
    "The label whose values take turns; off: none; with a weight, one of its values.": (
        "按其值轮流的标签；off：不轮流；后面给出权重时，为该标签的某个值。"
    ),
    "Jobs begun in each round; default: 1.": "每轮开始的作业数；default：1。",
    "Show by which label new jobs are begun in turn, or change it for all workers.": (
        "显示新作业按哪个标签轮流开始，或为所有 worker 修改。"
    ),
    "So a backlog of one team does not hold up another's jobs. Priority comes first. A change counts at once.": (
        "这样一个团队积压的作业不会拖住其他团队。优先级仍然优先。修改立即生效。"
    ),
    "Show how many stages may run at once per label, or change it for all workers.": (
        "显示每个标签同时运行的阶段上限，或为所有 worker 修改上限。"
    ),
    "A change counts at once; what runs goes on. Without arguments also lists who changed what.": (
        "修改立即生效，运行中的阶段不受影响。不带参数时还会列出修改记录。"
    ),
    "A label, or one of its values: team, team=red.": "标签，或标签的某个值：team、team=red。",
    "Stages at once; none: no bound; default: what the workers were started with.": (
        "同时运行的阶段数；none：不限；default：worker 启动时的设置。"
    ),
    "queue:NAME or host:NAME, as trainpack status lists them.": ("queue:名称 或 host:名称，名称见 trainpack status。"),
    "Begin nothing new from a queue or on a host; without one, show what is paused.": (
        "暂停某个队列或主机，不再开始新阶段；不带参数则显示已暂停的项。"
    ),
    "What runs goes on. Jobs that wait say so in trainpack status.": (
        "运行中的阶段不受影响。等待的作业会在 trainpack status 中说明原因。"
    ),
    "Let a paused queue or host go on; without one, show what is paused.": (
        "恢复某个暂停的队列或主机；不带参数则显示已暂停的项。"
    ),
    # package and submit
    "Package one run on this machine, then exit.": "在本机打包一次训练的结果，完成后退出。",
    "Of a run it is the best checkpoint by its scores, else the latest; flags decide otherwise. Without RUN and inputs "
    "it is the working directory.": (
        "训练目录取评分最佳的检查点，没有评分则取最新的；参数优先。不给 RUN 和输入时取当前目录。"
    ),
    "Uses the embedded stack that runs, or starts one and stops it again. Takes the flags of submit. Ctrl-C cancels "
    "the job. Exits 1 if the job failed.": (
        "使用正在运行的内置服务；没有则临时启动，用完即停。参数与 submit 相同。Ctrl-C 取消作业。作业失败时退出码为 1。"
    ),
    "Queue a job that packages a training run.": "提交一个打包作业。",
    "Merges the checkpoint's adapter into the base model, exports GGUF and quantizes it; other templates do parts of "
    "that (see `trainpack templates`). Prints the job's id.": (
        "将检查点的适配器合并到基础模型，导出 GGUF 并量化；其他模板只做其中一部分（见 `trainpack templates`）。"
        "输出作业编号。"
    ),
    "Stay until the job has ended; exit 1 if it failed.": "等到作业结束；失败时退出码为 1。",
    "A run's directory, one of its checkpoints, or a model: a path or s3://.": (
        "训练输出目录、其中一个检查点或一个模型：路径或 s3://。"
    ),
    # ask
    "Ask a packaged model in llama.cpp, through its own chat template.": "在 llama.cpp 中按对话模板向模型提问。",
    "Without a question it is a chat, until Ctrl-D. Answers are greedy: the same question gets the same answer. An "
    "adapter is asked on its base model. With --base both answer, the base first.": (
        "不给问题则进入对话，Ctrl-D 结束。采用贪心解码，同一问题得到同一回答。适配器会加载在其基础模型上。"
        "使用 --base 时先由基础模型回答，再由打包后的模型回答。"
    ),
    "A GGUF file, a directory of a package, or a job.": "GGUF 文件、打包输出目录或作业。",
    "A question; a chat where left out.": "问题；省略则进入对话。",
    "Ask the model that it was made from, too.": "同时向其基础模型提问。",
    "That model, where no manifest names it: a directory or GGUF.": "清单未指明时给出该模型：目录或 GGUF。",
    "Longest answer.": "回答的最大长度（token 数）。",
    "trainpack ask last --base          [dim]# a chat, side by side with the model it was made from[/dim]": (
        "trainpack ask last --base          [dim]# 对话，并与其基础模型对照[/dim]"
    ),
    "Ask the packaged model this when it is done.": "完成后向打包好的模型提出该问题。",
    # quantize and demo
    "Quantize a GGUF file on this machine, to all types in one pass.": "在本机量化 GGUF 文件，一遍完成所有类型。",
    "Byte for byte what llama-quantize makes. Ctrl-C keeps what is done; the same command goes on from there.": (
        "结果与 llama-quantize 逐字节一致。Ctrl-C 会保留已完成的部分，重新执行同一命令即可继续。"
    ),
    "A fit needs the model's directory or a sensitivity file; its recipe is written beside the file.": (
        "fit 需要模型目录或先前作业的敏感度文件；其配方写在文件旁边。"
    ),
    "Directory of the model, to compute a matrix with, and to compute and measure a fit.": (
        "模型目录，用于计算重要性矩阵，以及计算和测量 fit。"
    ),
    "A type that needs an importance matrix gets one computed with the model's directory, kept beside the files.": (
        "需要重要性矩阵的类型可用模型目录计算矩阵；矩阵会保存在输出文件旁边。"
    ),
    "Print the recipe of a fit, for llama-quantize's --tensor-type-file; no model is written.": (
        "输出 fit 的配方，供 llama-quantize 的 --tensor-type-file 使用；不写模型。"
    ),
    "Chosen by prediction from a sensitivity file; with the model's directory, by measurement, too.": (
        "根据敏感度文件按预测选择；给出模型目录时还会实测选择。"
    ),
    "A fit, e.g. fit:5.5GiB or fit:like:Q4_K_M.": "一个 fit，如 fit:5.5GiB 或 fit:like:Q4_K_M。",
    "Unquantized GGUF file, or its first shard.": "未量化的 GGUF 文件，或其第一个分片。",
    "Output directory.": "输出目录。",
    "Importance matrix, GGUF or legacy form; several are merged into one.": (
        "重要性矩阵，GGUF 或旧格式；给出多个时合并为一个。"
    ),
    "Take a file that is quantized already.": "允许输入已量化的文件。",
    "Replace files that are there.": "覆盖已存在的文件。",
    "Threads; all cores by default.": "线程数，默认使用全部核心。",
    "Train a small LoRA on a new fact, package it, ask it before and after.": (
        "用一条新知识训练一个小 LoRA，打包，并对比打包前后的回答。"
    ),
    "Takes a few minutes the first time; the base model and the training run are kept for the next.": (
        "首次需要几分钟；基础模型和训练结果会保留供下次使用。"
    ),
    # jobs
    "List jobs, newest first.": "列出作业，最新的在前。",
    "Only jobs in this state.": "只看该状态的作业。",
    "Only jobs with this label. May be repeated.": "只看带该标签的作业。可重复给出。",
    "Only jobs submitted since: 24h, 7d or a date.": "只看此后提交的作业：24h、7d 或日期。",
    "At most so many.": "最多显示的数量。",
    "Go on after this job, the last one of the list before.": "从该作业（上一页的最后一个）之后继续。",
    "Show a job, or without an id the workers and queues.": "显示一个作业；不给编号则显示 worker 和队列。",
    "Of a job: its stages and attempts, the error with cause and remedy, the outputs.": (
        "作业信息包括：各阶段与尝试、错误及其原因和处理方法、输出文件。"
    ),
    "Id of the job.": "作业编号。",
    "Follow jobs live, with a bar per stage and the newest log lines.": "实时查看作业：各阶段进度条和最新日志。",
    "Without an id, every job that is queued or running; with --state, --label or --since, those that match. The jobs "
    "are chosen when it starts. Ctrl-C leaves them running. With --json one log entry per line, then a line per job as "
    "it ended. Exits 1 if a job failed.": (
        "不给编号则查看所有排队和运行中的作业；也可用 --state、--label 或 --since 选择，启动时选定。"
        "Ctrl-C 不影响作业运行。使用 --json 时每行一条日志，最后每个作业一行结果。有作业失败时退出码为 1。"
    ),
    "Print a job's log.": "显示作业日志。",
    "With --json one entry per line, each with the id that --after takes.": (
        "使用 --json 时每行一条，各带一个可用于 --after 的编号。"
    ),
    "Go on until the job has ended.": "持续显示直到作业结束。",
    "Also progress and debug entries.": "包括进度和调试条目。",
    "Id of the last entry already seen.": "已看过的最后一条的编号。",
    "Wait until a job has ended.": "等待作业结束。",
    "Exits 1 if it failed, or if it has not ended in time.": "作业失败或超时，退出码为 1。",
    "Seconds to wait at most; exit 1 after them.": "最长等待秒数，超过则退出码为 1。",
    "List a job's files, or fetch them.": "列出或下载作业的输出文件。",
    "With --download they are copied where they are near, else fetched from object storage, and checked either way.": (
        "使用 --download 时，本机可见的文件直接复制，否则从对象存储下载；两种方式都会校验。"
    ),
    "Fetch the files into this directory and check them.": "将文件下载到该目录并校验。",
    "Replace other files of the same names.": "覆盖同名的其他文件。",
    "A queued one ends at once, a running one within seconds; nothing half-written stays.": (
        "排队中的立即结束，运行中的几秒内结束；不会留下写了一半的文件。"
    ),
    "Run ended jobs again, without redoing what succeeded.": "重新运行已结束的作业，已成功的部分不再重做。",
    "First stage to run again; the first that did not succeed where not given.": (
        "从哪个阶段重跑；不给则从第一个未成功的阶段开始。"
    ),
    # choices
    "List a run's checkpoints with their scores.": "列出一次训练的检查点及其评分。",
    "Of a checkpoint it is the run that it belongs to.": "给出检查点时列出它所属的训练。",
    "Says which is latest, best, and the last before early stopping. Exits 2 if there is none that can be packaged.": (
        "标出最新、最佳以及早停前的最后一个。没有可打包的检查点时退出码为 2。"
    ),
    "Output directory of a training run, or s3://; the working directory.": "训练输出目录，或 s3://；默认为当前目录。",
    "List the templates.": "列出模板。",
    "The built-in ones, and this site's own where the service can be reached. Only custom leaves its switches free.": (
        "包括内置模板；服务可达时还包括本站自定义的模板。只有 custom 可自由设置开关。"
    ),
    "List the quant types.": "列出量化类型。",
    "The recommended ones are marked *. Bits per weight are those of an 8B Llama.": (
        "推荐类型以 * 标出。每权重位数以 8B Llama 为准。"
    ),
    "Only the recommended ones.": "只看推荐类型。",
    "Recommend quant types for a model and a place to run it.": "按模型和运行环境推荐量化类型。",
    "For every type the file's size as it will be, the memory to run it (weights, KV cache, working buffers), and the "
    "quality to expect. cpu means this machine's memory.": (
        "给出每种类型的准确文件大小、运行所需内存（权重、KV 缓存、计算缓冲）和预期质量。cpu 指本机内存。"
    ),
    "With a sensitivity file of a GGUF file: the KLD that each size will have, as a stock type and as a fit.": (
        "给出 GGUF 文件的敏感度文件时：各种大小按标准类型和按 fit 的 KLD。"
    ),
    "Sensitivity file of the model.": "模型的敏感度文件。",
    "Tensor types of a fit: k, k+iq, all or a list.": "fit 的张量类型：k、k+iq、all 或列表。",
    "A model, a run or one of its checkpoints, or an unquantized GGUF file.": (
        "模型、训练目录或其检查点，或未量化的 GGUF 文件。"
    ),
    "Where it will run: gpu-24g, gpu-12g, gpu-8g, cpu, mobile or a size such as 6GB.": (
        "运行环境：gpu-24g、gpu-12g、gpu-8g、cpu、mobile，或大小如 6GB。"
    ),
    "Context length in tokens.": "上下文长度（token 数）。",
    # this machine
    "Run Valkey, SeaweedFS, a worker and the console on this machine until Ctrl-C.": (
        "在本机运行 Valkey、SeaweedFS、一个 worker 和控制台，直到 Ctrl-C。"
    ),
    "Without the web console.": "不启动网页控制台。",
    "Open the console in the browser.": "在浏览器中打开控制台。",
    "Other commands find them by themselves. All listen on this machine only; data and logs lie in ~/.trainpack or "
    "TRAINPACK_HOME.": ("其他命令会自动找到它们。只在本机监听；数据和日志位于 ~/.trainpack 或 TRAINPACK_HOME。"),
    "Only Valkey and SeaweedFS; start workers yourself.": "只启动 Valkey 和 SeaweedFS，worker 自行启动。",
    "How many workers.": "worker 数量。",
    "Run a worker until it is told to stop.": "运行一个 worker，直到被要求停止。",
    "Settings come from TRAINPACK_*; without an address it joins the embedded stack that runs. SIGTERM drains: the "
    "stage stops at a safe point and is handed back. With --json its log is JSON.": (
        "设置取自 TRAINPACK_* 环境变量；未给地址时加入正在运行的内置服务。SIGTERM 使其排空：阶段在安全点停下并交还。"
        "使用 --json 时日志为 JSON。"
    ),
    "Serve the HTTP API and the web console until Ctrl-C.": "提供 HTTP API 和网页控制台，直到 Ctrl-C。",
    "Joins the service that TRAINPACK_REDIS_URL names, else the embedded stack that runs. Settings, tokens above all, "
    "come from TRAINPACK_CONSOLE_*. With --json its log is JSON.": (
        "连接 TRAINPACK_REDIS_URL 指定的服务，否则连接正在运行的内置服务。令牌等设置取自 TRAINPACK_CONSOLE_*。"
        "使用 --json 时日志为 JSON。"
    ),
    "trainpack console          [dim]# for yourself: loopback, no login[/dim]": (
        "trainpack console          [dim]# 仅供自己使用：回环地址，无需登录[/dim]"
    ),
    "Address to listen on; without tokens a loopback one.": "监听地址；没有令牌时只能是回环地址。",
    "Port; 0: a free one.": "端口；0 表示任选空闲端口。",
    "Check this machine: packages, Redis, object storage, disk, converter.": (
        "检查本机：软件包、Redis、对象存储、磁盘、转换器。"
    ),
    "Changes nothing. Exits 1 if something must be mended before a worker can run here.": (
        "不做任何修改。若有问题需先解决才能运行 worker，退出码为 1。"
    ),
    # clean
    "Remove what trainpack keeps on this machine: scratch, caches, the demo, the embedded storage.": (
        "删除 trainpack 在本机保存的内容：工作目录、缓存、演示数据、内置对象存储。"
    ),
    "Says what and how much, and asks. Outputs stay. The stack must not be running.": (
        "先列出内容和大小，再询问。输出文件保留。需先停止内置服务。"
    ),
    "Where jobs wrote, to find what they left there.": "作业写入过的目录，用于查找残留。",
    "scratch, cache, demo or storage. May be repeated.": "scratch、cache、demo 或 storage。可重复给出。",
    "Only say what would go.": "只列出将删除的内容。",
    "Do not ask.": "不询问。",
    "Id of the job, a part of it, or last.": "作业编号、编号的一部分，或 last。",
    "Ids of jobs, parts of ids, or last.": "作业编号、编号的一部分，或 last；可给多个。",
    "Only say which jobs it would be.": "只列出将涉及的作业。",
    "Only jobs that failed with this code.": "只看因该错误码失败的作业。",
    "Only jobs with this in their id, labels, paths or error.": "只看编号、标签、路径或错误中含该文字的作业。",
    "Only entries in which this is found; letters' case is ignored.": "只看含该文字的条目，不区分大小写。",
    "Only entries as serious as this: debug, info, warning or error.": (
        "只看不低于该级别的条目：debug、info、warning 或 error。"
    ),
    "Cancel jobs, by name or by what they are like.": "按编号或条件取消作业。",
    "Jobs by name, or by what they are like; by default from the first stage that did not succeed.": (
        "按编号或条件选择作业；默认从第一个未成功的阶段开始。"
    ),
    "Replay the failed jobs of the last 24 hours, or --since.": ("重跑最近 24 小时（或 --since 以来）失败的作业。"),
    "Only say what it would do: stages and their time, files, sizes, room on disk.": (
        "只说明将要做什么：各阶段及预计用时、文件、大小、磁盘空间。"
    ),
    "Quant type, e.g. Q4_K_M; may be repeated or separated by commas.": (
        "量化类型，如 Q4_K_M；可重复给出或用逗号分隔。"
    ),
    "[bold]task.json[/bold]": "[bold]task.json[/bold]",
    "[bold]tokens.toml[/bold]": "[bold]tokens.toml[/bold]",
    "Tokens, by which the console knows who asks.": "令牌，控制台据此识别使用者。",
    "Print a table for tokens.toml with a new secret; nothing is stored.": (
        "输出一段含新密钥的表，可写入 tokens.toml；不保存任何内容。"
    ),
    "The secret is shown this once. A console reads its tokens when it starts.": (
        "密钥只显示这一次。控制台在启动时读取令牌。"
    ),
    "What it may do: read, submit or operate; each may do what those before it may.": (
        "权限：read、submit 或 operate，后者包含前者的权限。"
    ),
    "Who holds it, for the log; one is made up where not given.": "持有者名称，写入日志；不给则自动生成。",
    "Text to compute the importance matrix from, with --model; the one that comes with trainpack.": (
        "用于计算重要性矩阵的文本，需同时给出 --model；省略则用自带文本。"
    ),
}
