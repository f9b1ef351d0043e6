"""The one table of error codes: what each means to a program, to the command line, to HTTP, and in two languages.

Every code belongs to a class that says what happens next::

    refuse       the request or its input is wrong; never retried
    environment  this machine cannot do it (disk, memory, a missing part); elsewhere or after a person acts
    transient    a service did not answer; retried with backoff, bounded
    bug          trainpack itself is wrong; never retried, report it

A new code is a row here. ``errors`` raises, stores and explains them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Self


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    JOB_FAILED = 1
    BAD_REQUEST = 2
    NOT_REACHABLE = 3
    INTERRUPTED = 130
    """As shells report a program that Ctrl-C ended."""


class ErrorClass(StrEnum):
    """What happens next when an error of this class ends an attempt."""

    REFUSE = "refuse"
    ENVIRONMENT = "environment"
    TRANSIENT = "transient"
    BUG = "bug"


_R, _E, _T, _B = ErrorClass.REFUSE, ErrorClass.ENVIRONMENT, ErrorClass.TRANSIENT, ErrorClass.BUG
_HTTP_STATUS: Final = {_R: 422, _E: 503, _T: 503, _B: 500}
_EXIT_CODE: Final = {
    _R: ExitCode.BAD_REQUEST,
    _E: ExitCode.JOB_FAILED,
    _T: ExitCode.JOB_FAILED,
    _B: ExitCode.JOB_FAILED,
}
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FOREIGN_TEXTS = (
    "Another version of trainpack knows what this code means; this one does not.",
    "Look the code up in the documentation of the newer version, or update this one.",
    "该错误码的含义由其他版本的 trainpack 定义，当前版本不认识它。",
    "查阅新版本的文档，或更新当前版本。",
)


@dataclass(frozen=True)
class ErrorRow:
    """One code. ``http_status`` and ``exit_code`` are the class's where not given."""

    code: str
    error_class: ErrorClass
    cause_en: str
    remedy_en: str
    cause_zh: str
    remedy_zh: str
    http_status: int = 0
    exit_code: ExitCode | None = None


class ErrorCode(StrEnum):
    """Stable names of everything that can go wrong. Values never change once released."""

    _value_: str
    row: ErrorRow

    def __new__(cls, row: ErrorRow | str) -> Self:
        """Make a member from its row; ``ErrorCode(text)`` looks one up instead."""
        assert isinstance(row, ErrorRow)
        return str.__new__(cls, row.code)._of(row)

    @classmethod
    def foreign(cls, text: str, error_class: ErrorClass) -> Self:
        """A code of another version, which stands in no list: it keeps its text and the class it was stored with.

        What is no code at all (not ``[a-z0-9_]``, longer than 64) becomes ``internal_error``.
        """
        if not _CODE.fullmatch(text):
            return cls("internal_error")
        # ``ErrorCode(...)`` only looks members up, so this one is made as their base makes them.
        return str.__new__(cls, text)._of(ErrorRow(text, error_class, *_FOREIGN_TEXTS))

    def _of(self, row: ErrorRow) -> Self:
        self._name_, self._value_, self.row = row.code.upper(), row.code, row
        return self

    @property
    def error_class(self) -> ErrorClass:
        """What happens next."""
        return self.row.error_class

    @property
    def http_status(self) -> int:
        """Status of an answer that is this error."""
        return self.row.http_status or _HTTP_STATUS[self.error_class]

    @property
    def exit_code(self) -> ExitCode:
        """How a command ends that meets this error."""
        return _EXIT_CODE[self.error_class] if self.row.exit_code is None else self.row.exit_code

    # the request
    REQUEST_INVALID = ErrorRow(
        "request_invalid",
        _R,
        "A field of the request has a value of the wrong kind.",
        "Correct the field that the message names.",
        "请求中某个字段的值不合法。",
        "按提示修改对应字段。",
    )
    UNKNOWN_FIELD = ErrorRow(
        "unknown_field",
        _R,
        "The request has a field or option that does not exist.",
        "Use the name the message suggests.",
        "请求中包含不存在的字段或选项。",
        "改用提示中建议的名称。",
    )
    UNKNOWN_TEMPLATE = ErrorRow(
        "unknown_template",
        _R,
        "There is no template of that name.",
        "List the templates with `trainpack templates`.",
        "没有该名称的模板。",
        "用 `trainpack templates` 查看全部模板。",
    )
    TEMPLATE_LOCKED = ErrorRow(
        "template_locked",
        _R,
        "A switch was set that the template locks.",
        "Drop the switch, or use the template `custom`.",
        "设置了模板已锁定的开关。",
        "去掉该开关，或改用 `custom` 模板。",
    )
    QUANTIZE_NEEDS_EXPORT = ErrorRow(
        "quantize_needs_export",
        _R,
        "quantize is on while export_gguf is off.",
        "Turn export_gguf on, or quantize off.",
        "开启了量化但未开启导出 GGUF。",
        "开启 export_gguf，或关闭 quantize。",
    )
    QUANT_TYPES_NEED_QUANTIZE = ErrorRow(
        "quant_types_need_quantize",
        _R,
        "Quant types were chosen while quantize is off.",
        "Turn quantize on, or drop the quant types.",
        "未开启量化却选择了量化类型。",
        "开启 quantize，或去掉量化类型。",
    )
    QUANT_TYPES_EMPTY = ErrorRow(
        "quant_types_empty",
        _R,
        "quantize is on and the list of quant types is empty.",
        "Name at least one quant type, e.g. Q4_K_M.",
        "已开启量化但量化类型列表为空。",
        "至少选择一种量化类型，例如 Q4_K_M。",
    )
    QUANT_TYPE_UNKNOWN = ErrorRow(
        "quant_type_unknown",
        _R,
        "There is no quant type of that name.",
        "List them with `trainpack quant-types`.",
        "没有该名称的量化类型。",
        "用 `trainpack quant-types` 查看全部类型。",
    )
    QUANT_TYPE_DUPLICATE = ErrorRow(
        "quant_type_duplicate",
        _R,
        "A quant type is named twice.",
        "Name each quant type once.",
        "同一量化类型出现了两次。",
        "每种量化类型只写一次。",
    )
    QUANT_TYPE_UNFIT = ErrorRow(
        "quant_type_unfit",
        _R,
        "The blocks of the quant type do not divide the model's rows, and llama.cpp has no type to fall back to.",
        "Choose another quant type; most have shorter blocks to fall back to.",
        "该量化类型的块长不能整除模型的行长，且 llama.cpp 没有可替代的类型。",
        "选择其他量化类型，多数类型可退回到更短的块。",
    )
    TENSOR_TYPE_UNKNOWN = ErrorRow(
        "tensor_type_unknown",
        _R,
        "There is no tensor type of that name, or none that can be made.",
        "Use a ggml type such as Q4_K, Q6_K or F16.",
        "没有该名称的张量类型，或该类型无法生成。",
        "使用 ggml 类型，如 Q4_K、Q6_K 或 F16。",
    )
    RECIPE_INVALID = ErrorRow(
        "recipe_invalid",
        _R,
        "The recipe cannot be read, names no tensor of the model, or gives one a type that its rows do not fit.",
        "Write NAME=TYPE as for llama-quantize --tensor-type; NAME is searched for in the tensors' names.",
        "配方无法读取，或不对应模型的任何张量，或所给类型与张量的行长不符。",
        "按 llama-quantize --tensor-type 的写法给出 NAME=TYPE；NAME 在张量名称中查找。",
    )
    FIT_INVALID = ErrorRow(
        "fit_invalid",
        _R,
        "What stands after fit: is no size, bits per weight, quant type, target or KLD.",
        "Write e.g. fit:5.5GiB, fit:4.5bpw, fit:like:Q4_K_M, fit:target:gpu-8g or fit:kld:0.02.",
        "fit: 之后不是体积、每权重位数、量化类型、目标设备或 KLD。",
        "写成例如 fit:5.5GiB、fit:4.5bpw、fit:like:Q4_K_M、fit:target:gpu-8g 或 fit:kld:0.02。",
    )
    FIT_IMPOSSIBLE = ErrorRow(
        "fit_impossible",
        _R,
        "No file of this model keeps the bound of the fit: it is too small, too large, or the target cannot hold it.",
        "Choose a bound within the range that the message names, or allow more types with fit.types.",
        "该模型没有文件能满足此 fit 的界限：过小、过大，或目标设备容纳不下。",
        "在消息给出的范围内选择界限，或用 fit.types 允许更多类型。",
    )
    MERGE_EXCLUDES_LORA_EXPORT = ErrorRow(
        "merge_excludes_lora_export",
        _R,
        "merge_lora and export_lora are both on.",
        "Choose one: merge the adapter, or export it alone.",
        "合并 LoRA 与导出 LoRA 同时开启。",
        "二者只能选一。",
    )
    CHECKPOINT_REQUIRED = ErrorRow(
        "checkpoint_required",
        _R,
        "merge_lora or export_lora is on and no checkpoint is given.",
        "Give a checkpoint directory, `latest` or `best`.",
        "开启了合并或导出 LoRA，但未指定检查点。",
        "指定检查点目录，或 `latest`、`best`。",
    )
    CHECKPOINT_NOT_ADAPTER = ErrorRow(
        "checkpoint_not_adapter",
        _R,
        "The checkpoint holds full weights, not an adapter.",
        "Package it with `quantize_base`, giving the checkpoint as the base model.",
        "检查点是完整权重，而不是 LoRA 适配器。",
        "使用 `quantize_base` 模板，并把该检查点作为基础模型。",
    )
    CHECKPOINT_IS_ADAPTER = ErrorRow(
        "checkpoint_is_adapter",
        _R,
        "The checkpoint is an adapter, and the template neither merges nor exports it.",
        "Use a merge template or `lora_only`, or leave the checkpoint out.",
        "检查点是适配器，但所选模板既不合并也不导出它。",
        "改用合并类模板或 `lora_only`，或不指定检查点。",
    )
    NOTHING_TO_DO = ErrorRow(
        "nothing_to_do",
        _R,
        "All outputs are switched off.",
        "Turn on export_gguf or export_lora.",
        "所有输出都已关闭。",
        "开启 export_gguf 或 export_lora。",
    )
    BASE_MODEL_REQUIRED = ErrorRow(
        "base_model_required",
        _R,
        "No base model is given and none can be derived from the task.",
        "Set `base_model`.",
        "未指定基础模型，也无法从训练任务得到。",
        "设置 `base_model`。",
    )
    OUTPUT_DIR_REQUIRED = ErrorRow(
        "output_dir_required",
        _R,
        "No output directory is given and none can be derived from the task.",
        "Set `output_dir`.",
        "未指定输出目录，也无法从训练任务得到。",
        "设置 `output_dir`。",
    )
    TASK_NOT_PACKAGEABLE = ErrorRow(
        "task_not_packageable",
        _R,
        "The training task is not completed, stopped or failed with a usable checkpoint.",
        "Wait until the task has ended, or stop it.",
        "训练任务尚未完成、停止，或失败且没有可用的检查点。",
        "等待任务结束，或先停止任务。",
    )
    IDEMPOTENCY_CONFLICT = ErrorRow(
        "idempotency_conflict",
        _R,
        "The idempotency key was used before with a different request.",
        "Use a new key, or send the first request unchanged.",
        "该幂等键已用于另一个不同的请求。",
        "换一个键，或原样重发第一次的请求。",
        http_status=409,
    )
    TASK_CONFLICT = ErrorRow(
        "task_conflict",
        _R,
        "A training task of this id is registered with other paths.",
        "Give the task another id, or say that it replaces the one that is registered.",
        "该编号的训练任务已用其他路径登记。",
        "换一个任务编号，或声明替换已登记的任务。",
        http_status=409,
    )
    IMATRIX_REQUIRED = ErrorRow(
        "imatrix_required",
        _R,
        "The quant type cannot be made without an importance matrix.",
        "Give an imatrix file or calibration text, or choose another quant type.",
        "该量化类型必须有重要性矩阵。",
        "提供 imatrix 文件或校准文本，或改用其他量化类型。",
    )
    CALLBACKS_OFF = ErrorRow(
        "callbacks_off",
        _R,
        "The request has a callback_url, and the workers have no secret to sign callbacks with.",
        "Set TRAINPACK_CALLBACK_SECRET on every worker, or drop `callback_url` and poll or wait instead.",
        "请求中带有 callback_url，但 worker 未设置用于签名的密钥。",
        "在所有 worker 上设置 TRAINPACK_CALLBACK_SECRET，或去掉 `callback_url`，改用轮询或等待。",
    )
    # jobs
    JOB_NOT_FOUND = ErrorRow(
        "job_not_found",
        _R,
        "There is no job with that id; finished jobs expire after a set time.",
        "Check the id with `trainpack list`.",
        "没有该编号的作业；已结束的作业会在一段时间后过期。",
        "用 `trainpack list` 核对编号。",
        http_status=404,
    )
    JOB_NEWER = ErrorRow(
        "job_newer",
        _R,
        "A newer version of trainpack stored the job; this one cannot read all of it.",
        "Update this client; newer workers run the job meanwhile.",
        "该作业由更新版本的 trainpack 存储，当前版本无法完整读取。",
        "请更新此客户端；作业本身由新版本的 worker 正常执行。",
    )
    RECORD_INVALID = ErrorRow(
        "record_invalid",
        _R,
        "The job's record in Redis is not one that trainpack wrote: someone else changed it.",
        "Submit the job again, and see who may write to Redis (`deploy/compose/roles.acl.in`).",
        "Redis 中该作业的记录不是 trainpack 写入的：被其他程序改动过。",
        "重新提交该作业，并检查谁有权写入 Redis（`deploy/compose/roles.acl.in`）。",
        http_status=409,
    )
    JOB_RUNNING = ErrorRow(
        "job_running",
        _R,
        "The job is still queued or running.",
        "Wait for it or cancel it first.",
        "作业仍在排队或运行。",
        "先等待其结束或取消它。",
        http_status=409,
    )
    JOB_FINISHED = ErrorRow(
        "job_finished",
        _R,
        "The job has already ended.",
        "Nothing is left to cancel; replay it to run it again.",
        "作业已经结束。",
        "无需取消；如需重跑请使用 replay。",
        http_status=409,
    )
    JOB_CANCELLED = ErrorRow(
        "job_cancelled",
        _R,
        "The job was cancelled.",
        "Submit it again, or replay it.",
        "作业已被取消。",
        "重新提交或 replay。",
        exit_code=ExitCode.JOB_FAILED,
    )
    JOB_FAILED = ErrorRow(
        "job_failed",
        _R,
        "The job ended in failure.",
        "Read the job's own error, mend the cause, then replay.",
        "作业以失败结束。",
        "查看作业自身的错误，排除原因后 replay。",
        exit_code=ExitCode.JOB_FAILED,
    )
    STAGE_NOT_IN_PLAN = ErrorRow(
        "stage_not_in_plan",
        _R,
        "The job's plan has no such stage.",
        "Name one of the stages in the job's plan.",
        "该作业的计划中没有这个阶段。",
        "改用计划中存在的阶段。",
    )
    WAIT_TIMEOUT = ErrorRow(
        "wait_timeout",
        _R,
        "The job did not end within the time given to wait.",
        "Wait longer; the job itself goes on.",
        "在等待时限内作业没有结束。",
        "延长等待时间；作业本身仍在继续。",
        exit_code=ExitCode.JOB_FAILED,
    )
    # inputs
    PATH_NOT_ALLOWED = ErrorRow(
        "path_not_allowed",
        _R,
        "A path lies outside the roots or buckets this worker may read or write.",
        "Move the data under an allowed root, or extend TRAINPACK_ALLOWED_ROOTS.",
        "路径不在允许的目录或存储桶之内。",
        "把数据移到允许的目录下，或扩展 TRAINPACK_ALLOWED_ROOTS。",
        http_status=403,
    )
    BASE_MODEL_NOT_FOUND = ErrorRow(
        "base_model_not_found",
        _R,
        "The base model directory does not exist.",
        "Correct `base_model`.",
        "基础模型目录不存在。",
        "修改 `base_model`。",
    )
    BASE_MODEL_INVALID = ErrorRow(
        "base_model_invalid",
        _R,
        "The base model directory is incomplete or unreadable.",
        "Give a Hugging Face directory with config.json and safetensors weights.",
        "基础模型目录不完整或无法读取。",
        "提供包含 config.json 和 safetensors 权重的 Hugging Face 目录。",
    )
    BASE_MODEL_QUANTIZED = ErrorRow(
        "base_model_quantized",
        _R,
        "The base model's weights are quantized in a way that is not read (GPTQ, AWQ, ...), or the scales do not fit.",
        "Use the original 16-bit base model; a QLoRA adapter merges into it.",
        "基础模型权重的量化方式无法读取（GPTQ、AWQ 等），或其缩放因子不匹配。",
        "使用原始 16 位基础模型，QLoRA 适配器可以合并到其中。",
    )
    WEIGHTS_PICKLED = ErrorRow(
        "weights_pickled",
        _R,
        "Only pickled weights (.bin, .pt, .pth) were found; unpickling could run code.",
        "Save the model again with safetensors (`save_pretrained(..., safe_serialization=True)`).",
        "只找到 pickle 格式的权重（.bin、.pt、.pth），反序列化可能执行代码。",
        "用 safetensors 重新保存模型（`save_pretrained(..., safe_serialization=True)`）。",
    )
    WEIGHTS_TRUNCATED = ErrorRow(
        "weights_truncated",
        _R,
        "A safetensors file is damaged: its header and its size disagree.",
        "Copy or download the file again; compare its checksum.",
        "safetensors 文件损坏：文件头与文件大小不符。",
        "重新复制或下载该文件，并核对校验和。",
    )
    WEIGHTS_SHARD_MISSING = ErrorRow(
        "weights_shard_missing",
        _R,
        "A shard that the weight index names is missing.",
        "Copy the missing shard beside the index.",
        "权重索引中列出的分片文件缺失。",
        "把缺失的分片补到索引所在目录。",
    )
    WEIGHTS_NOT_FINITE = ErrorRow(
        "weights_not_finite",
        _R,
        "A weight tensor holds NaN or infinite values.",
        "Choose a checkpoint from before training diverged.",
        "权重张量中含有 NaN 或无穷大。",
        "选择训练发散之前的检查点。",
    )
    TOKENIZER_NOT_FOUND = ErrorRow(
        "tokenizer_not_found",
        _R,
        "Neither tokenizer.model nor tokenizer.json was found in the checkpoint, its parents or the base model.",
        "Copy the tokenizer files into the base model directory.",
        "在检查点、其上级目录和基础模型中都没有找到 tokenizer.model 或 tokenizer.json。",
        "把分词器文件复制到基础模型目录。",
    )
    TOKENIZER_UNSUPPORTED = ErrorRow(
        "tokenizer_unsupported",
        _R,
        "The converter does not know this tokenizer.",
        "Use a newer converter with TRAINPACK_LLAMA_CPP_DIR.",
        "转换器不认识该分词器。",
        "通过 TRAINPACK_LLAMA_CPP_DIR 使用更新的转换器。",
    )
    VOCABULARY_MISMATCH = ErrorRow(
        "vocabulary_mismatch",
        _R,
        "The tokenizer has more tokens than the embedding has rows, or two compared models have other vocabularies.",
        "Save the model after resize_token_embeddings, or use the tokenizer it was trained with.",
        "分词器的词表大于嵌入矩阵的行数，或相互比较的两个模型词表不同。",
        "在 resize_token_embeddings 之后重新保存模型，或使用训练时的分词器。",
    )
    PROJECTOR_INVALID = ErrorRow(
        "projector_invalid",
        _R,
        "The projector for pictures or sound cannot be made, or does not fit the text model.",
        "Complete the model directory, or set `projector` to `off` to package the text model alone.",
        "无法生成处理图像或声音的投影文件，或该文件与文本模型不匹配。",
        "补全模型目录，或将 `projector` 设为 `off`，只打包文本模型。",
    )
    DRAFT_HEAD_INVALID = ErrorRow(
        "draft_head_invalid",
        _R,
        "The prediction layers (MTP, NextN) are not there as asked for, or do not fit the model.",
        "Set `draft_head` to `graft` and name the base model that has them, or to `drop` to leave them out.",
        "预测层（MTP、NextN）并未按要求存在，或与模型不匹配。",
        "将 `draft_head` 设为 `graft` 并指明含有预测层的基础模型，或设为 `drop` 以略去预测层。",
    )
    UNSUPPORTED_ARCHITECTURE = ErrorRow(
        "unsupported_architecture",
        _R,
        "The converter does not support this model architecture.",
        "Point TRAINPACK_LLAMA_CPP_DIR at a newer llama.cpp, or use another base model.",
        "转换器不支持该模型架构。",
        "将 TRAINPACK_LLAMA_CPP_DIR 指向更新的 llama.cpp，或更换基础模型。",
    )
    CHECKPOINT_NOT_FOUND = ErrorRow(
        "checkpoint_not_found",
        _R,
        "The checkpoint does not exist.",
        "List the run's checkpoints with `trainpack checkpoints DIR`.",
        "检查点不存在。",
        "用 `trainpack checkpoints DIR` 查看可用检查点。",
    )
    CHECKPOINTS_EMPTY = ErrorRow(
        "checkpoints_empty",
        _R,
        "The run has no checkpoint to choose from.",
        "Check that training used LoRA and was set to save checkpoints.",
        "训练任务没有可选的检查点。",
        "确认训练使用了 LoRA，并设置了保存检查点。",
    )
    ADAPTER_INVALID = ErrorRow(
        "adapter_invalid",
        _R,
        "The adapter's files are incomplete or unreadable.",
        "Give a directory with adapter_config.json and adapter_model.safetensors.",
        "适配器文件不完整或无法读取。",
        "提供包含 adapter_config.json 和 adapter_model.safetensors 的目录。",
    )
    ADAPTER_MISMATCH = ErrorRow(
        "adapter_mismatch",
        _R,
        "The adapter does not fit the base model.",
        "Use the base model the adapter was trained on.",
        "适配器与基础模型不匹配。",
        "使用训练该适配器时的基础模型。",
    )
    ADAPTER_UNSUPPORTED = ErrorRow(
        "adapter_unsupported",
        _R,
        "The adapter uses something that cannot be merged or expressed in the output.",
        "The message names the feature; merge it with PEFT first, or choose another template.",
        "适配器使用了无法合并或无法在输出中表达的特性。",
        "按提示中的特性先用 PEFT 合并，或改用其他模板。",
    )
    ADAPTER_NOT_FINITE = ErrorRow(
        "adapter_not_finite",
        _R,
        "The adapter holds NaN or infinite values.",
        "Choose a checkpoint from before training diverged.",
        "适配器中含有 NaN 或无穷大。",
        "选择训练发散之前的检查点。",
    )
    IMATRIX_INVALID = ErrorRow(
        "imatrix_invalid",
        _R,
        "The importance matrix file is damaged or of an unknown form.",
        "Compute it again, or leave it out.",
        "重要性矩阵文件损坏或格式未知。",
        "重新计算，或不提供该文件。",
    )
    IMATRIX_MISMATCH = ErrorRow(
        "imatrix_mismatch",
        _R,
        "The importance matrix belongs to another model.",
        "Use a matrix computed for this model.",
        "重要性矩阵属于另一个模型。",
        "使用为该模型计算的矩阵。",
    )
    SENSITIVITY_INVALID = ErrorRow(
        "sensitivity_invalid",
        _R,
        "The sensitivity file is damaged, of an unknown form, or of another model.",
        "Compute it again, or leave it out.",
        "敏感度文件损坏、格式未知，或属于另一个模型。",
        "重新计算，或不提供该文件。",
    )
    CALIBRATION_TOO_SHORT = ErrorRow(
        "calibration_too_short",
        _R,
        "The calibration text has too few tokens for one chunk.",
        "Give a longer text.",
        "校准文本不足以构成一个块。",
        "提供更长的文本。",
    )
    DATASET_INVALID = ErrorRow(
        "dataset_invalid",
        _R,
        "The evaluation data cannot be read, is empty, or has records of no known shape.",
        "Give JSON Lines with messages, conversations, prompt and completion, instruction and output, or text.",
        "评估数据无法读取、为空，或记录格式无法识别。",
        "请提供 JSON Lines，字段为 messages、conversations、prompt 与 completion、instruction 与 output 或 text。",
    )
    GGUF_INVALID = ErrorRow(
        "gguf_invalid",
        _R,
        "The GGUF file is damaged, cut short or not GGUF at all.",
        "Make or copy the file again.",
        "GGUF 文件损坏、被截断或根本不是 GGUF。",
        "重新生成或复制该文件。",
    )
    GGUF_ALREADY_QUANTIZED = ErrorRow(
        "gguf_already_quantized",
        _R,
        "The source GGUF is already quantized; quantizing twice loses quality.",
        "Use the unquantized GGUF, or set `allow_requantize`.",
        "源 GGUF 已经量化，重复量化会损失质量。",
        "使用未量化的 GGUF，或设置 `allow_requantize`。",
    )
    # outputs
    OUTPUT_EXISTS = ErrorRow(
        "output_exists",
        _R,
        "The output directory holds a file of that name that is not of this job.",
        "Choose another `output_dir` or `model_name`, or set `overwrite`.",
        "输出目录中已有同名文件，且不属于本作业。",
        "更换 `output_dir` 或 `model_name`，或设置 `overwrite`。",
    )
    OUTPUT_DIR_NOT_WRITABLE = ErrorRow(
        "output_dir_not_writable",
        _R,
        "The output directory cannot be created or written.",
        "Correct the path or its permissions.",
        "输出目录无法创建或写入。",
        "修改路径或其权限。",
    )
    OUTPUT_DOES_NOT_LOAD = ErrorRow(
        "output_does_not_load",
        _R,
        "A finished GGUF does not load or answer in llama.cpp.",
        "Read the loader's reason in the message; often config.json names layers the weights lack.",
        "生成的 GGUF 无法在 llama.cpp 中加载或应答。",
        "查看提示中的加载原因；常见原因是 config.json 声明了权重中不存在的层。",
    )
    QUALITY_BELOW_THRESHOLD = ErrorRow(
        "quality_below_threshold",
        _R,
        "A file is further from the model than the request allows.",
        "Replay from quantize with larger types or an importance matrix, or from evaluate with another bound.",
        "文件与来源模型的差距超过请求允许的界限。",
        "改用更大的量化类型或重要性矩阵后从 quantize 重放，或放宽界限后从 evaluate 重放。",
        exit_code=ExitCode.JOB_FAILED,
    )
    # the machine
    DISK_SPACE_INSUFFICIENT = ErrorRow(
        "disk_space_insufficient",
        _E,
        "The disk has too little free space.",
        "Free the space the message names, or write elsewhere.",
        "磁盘可用空间不足。",
        "按提示腾出空间，或写到其他磁盘。",
    )
    OUT_OF_MEMORY = ErrorRow(
        "out_of_memory",
        _E,
        "The stage ran out of memory.",
        "Run it on a worker with more memory.",
        "阶段运行时内存不足。",
        "换到内存更大的 worker 上运行。",
    )
    DEPENDENCY_MISSING = ErrorRow(
        "dependency_missing",
        _E,
        "A package that this step needs is not installed.",
        "Install the extra that the message names.",
        "缺少该步骤需要的软件包。",
        "安装提示中的 extra。",
        exit_code=ExitCode.BAD_REQUEST,
    )
    STAGE_CRASHED = ErrorRow(
        "stage_crashed",
        _E,
        "The stage's process died repeatedly.",
        "Read how it died and its last log lines in the message.",
        "阶段进程多次异常退出。",
        "查看提示中的退出原因和最后的日志。",
    )
    STAGE_TIMEOUT = ErrorRow(
        "stage_timeout",
        _E,
        "The stage ran longer than its time limit.",
        "Raise the stage time limit, or use a faster worker.",
        "阶段运行超过时限。",
        "提高阶段时限，或使用更快的 worker。",
    )
    SETTINGS_INVALID = ErrorRow(
        "settings_invalid",
        _E,
        "A TRAINPACK_* setting is unknown or contradicts another.",
        "Correct the setting that the message names.",
        "某个 TRAINPACK_* 配置未知或相互矛盾。",
        "按提示修改配置。",
        exit_code=ExitCode.BAD_REQUEST,
    )
    SERVICE_START_FAILED = ErrorRow(
        "service_start_failed",
        _E,
        "A part of the embedded stack, or the console, did not start.",
        "Read the part's last log lines in the message.",
        "内置服务的某一部分或控制台没有启动。",
        "查看提示中的日志。",
        exit_code=ExitCode.NOT_REACHABLE,
    )
    ARTIFACT_LOST = ErrorRow(
        "artifact_lost",
        _E,
        "A file that an earlier stage made is missing or has changed.",
        "Replay from the stage that makes it.",
        "前一阶段产生的文件丢失或被改动。",
        "从产生该文件的阶段 replay。",
    )
    # services
    REDIS_NO_WRITES = ErrorRow(
        "redis_no_writes",
        _T,
        "Redis answers but takes no writes: its memory or its disk is full, or it is a read-only replica.",
        "Full memory: raise maxmemory or remove what is not trainpack's. A replica: use its primary's address, or "
        "Sentinel's. Disk: make room for it. Jobs that run wait and lose nothing.",
        "Redis 有响应但无法写入：内存或磁盘已满，或者它是只读副本。",
        "内存已满：提高 maxmemory 或清理其他数据；只读副本：改用主节点或 Sentinel 的地址；磁盘已满：清理磁盘。"
        "运行中的作业会等待，不会丢失。",
        exit_code=ExitCode.NOT_REACHABLE,
        http_status=503,
    )
    SUBMIT_WAIT_UNSUPPORTED = ErrorRow(
        "submit_wait_unsupported",
        _E,
        "Submitting is to wait until Redis has the job on its disk or on a replica, and this server cannot say so.",
        "Disk: set appendonly to yes and appendfsync to everysec or always. Replica: let one follow. Or set "
        "TRAINPACK_SUBMIT_WAIT to none, and jobs of the last seconds may be lost with the server.",
        "提交须等到 Redis 把作业写入磁盘或副本后才返回，而该服务器无法确认。",
        "磁盘：把 appendonly 设为 yes，appendfsync 设为 everysec 或 always；副本：添加一个副本。也可把 "
        "TRAINPACK_SUBMIT_WAIT 设为 none，此时服务器崩溃可能丢失最近几秒的作业。",
        exit_code=ExitCode.NOT_REACHABLE,
    )
    SUBMIT_UNCONFIRMED = ErrorRow(
        "submit_unconfirmed",
        _T,
        "The job is stored, but Redis did not confirm in time that its disk or a replica has it.",
        "Submit again with the same idempotency key, which makes one job at most; see why Redis or its disk is slow.",
        "作业已存入 Redis，但未能及时确认磁盘或副本已有该作业。",
        "用相同的幂等键再次提交（最多只会有一个作业）；并检查 Redis 或其磁盘为何缓慢。",
        exit_code=ExitCode.NOT_REACHABLE,
    )
    REDIS_DENIED = ErrorRow(
        "redis_denied",
        _R,
        "The user of Redis may not do this under this key prefix.",
        "Let the user's ACL cover the prefix (~PREFIX:*) and the commands of deploy/compose, or correct "
        "TRAINPACK_KEY_PREFIX and the user in TRAINPACK_REDIS_URL.",
        "Redis 用户无权在该键前缀下执行此操作。",
        "让该用户的 ACL 覆盖前缀（~前缀:*）和 deploy/compose 中列出的命令，或修改 TRAINPACK_KEY_PREFIX 以及 "
        "TRAINPACK_REDIS_URL 中的用户。",
        exit_code=ExitCode.NOT_REACHABLE,
        http_status=503,
    )
    REDIS_UNREACHABLE = ErrorRow(
        "redis_unreachable",
        _T,
        "Redis does not answer.",
        "Start it with `trainpack up`, or correct TRAINPACK_REDIS_URL.",
        "无法连接 Redis。",
        "用 `trainpack up` 启动，或修改 TRAINPACK_REDIS_URL。",
        exit_code=ExitCode.NOT_REACHABLE,
    )
    STORAGE_UNREACHABLE = ErrorRow(
        "storage_unreachable",
        _T,
        "The object storage does not answer.",
        "Check the endpoint TRAINPACK_S3_ENDPOINT_URL.",
        "对象存储无法连接。",
        "检查 TRAINPACK_S3_ENDPOINT_URL。",
        http_status=502,
        exit_code=ExitCode.NOT_REACHABLE,
    )
    STORAGE_DENIED = ErrorRow(
        "storage_denied",
        _R,
        "The storage, the Hub or the registry refuses the credentials or the place.",
        "Check the credentials, their rights and the name of the bucket or repository.",
        "对象存储、Hub 或镜像仓库拒绝了凭据或目标位置。",
        "检查凭据、权限以及存储桶或仓库的名称。",
        http_status=502,
    )
    DOWNLOAD_FAILED = ErrorRow(
        "download_failed",
        _T,
        "An input could not be fetched.",
        "Check that the object exists and the network is up.",
        "输入文件下载失败。",
        "检查对象是否存在以及网络是否正常。",
        http_status=502,
    )
    UPLOAD_FAILED = ErrorRow(
        "upload_failed",
        _T,
        "An output could not be uploaded, or arrived changed.",
        "Check the storage, then replay from publish.",
        "输出上传失败，或上传后校验不一致。",
        "检查存储后从 publish 阶段 replay。",
    )
    WORKER_LOST = ErrorRow(
        "worker_lost",
        _T,
        "The worker that ran the stage disappeared.",
        "Nothing; the stage is run again.",
        "执行该阶段的 worker 失联。",
        "无需处理，阶段会自动重跑。",
    )
    CUDA_OUT_OF_MEMORY = ErrorRow(
        "cuda_out_of_memory",
        _T,
        "The GPU ran out of memory.",
        "Free the GPU, or run on the CPU.",
        "GPU 显存不足。",
        "释放显存，或改用 CPU。",
    )
    # the console
    UNAUTHENTICATED = ErrorRow(
        "unauthenticated",
        _R,
        "The console needs a token, and none that it knows was sent.",
        "Send `Authorization: Bearer TOKEN`, or log in at /login.",
        "控制台需要令牌，但请求没有携带有效的令牌。",
        "发送 `Authorization: Bearer TOKEN`，或在 /login 登录。",
        http_status=401,
    )
    TOKEN_EXPIRED = ErrorRow(
        "token_expired",
        _R,
        "The token or the session has ended.",
        "Ask an operator for a new token, or log in again.",
        "令牌或会话已过期。",
        "向运维人员申请新令牌，或重新登录。",
        http_status=401,
    )
    PERMISSION_DENIED = ErrorRow(
        "permission_denied",
        _R,
        "The token's role does not allow this.",
        "Use a token with the role that the message names.",
        "令牌的角色无权执行该操作。",
        "使用具有提示中所需角色的令牌。",
        http_status=403,
    )
    CSRF_FAILED = ErrorRow(
        "csrf_failed",
        _R,
        "The request came from another site, or from a page of an older session.",
        "Load the page again and repeat it.",
        "请求来自其他站点，或来自旧会话的页面。",
        "刷新页面后重试。",
        http_status=403,
    )
    HOST_NOT_ALLOWED = ErrorRow(
        "host_not_allowed",
        _R,
        "The request is addressed to a host name that this console does not answer to.",
        "Use the address that `trainpack console` printed, or add the name to TRAINPACK_CONSOLE_ALLOWED_HOSTS.",
        "请求使用了控制台不接受的主机名。",
        "使用 `trainpack console` 输出的地址，或把该主机名加入 TRAINPACK_CONSOLE_ALLOWED_HOSTS。",
        http_status=421,
    )
    ADDRESS_NOT_FOUND = ErrorRow(
        "address_not_found",
        _R,
        "The console has nothing at this address, or not for this method.",
        "See /api/v1/openapi.json for the addresses that exist.",
        "控制台没有该地址，或该地址不支持此方法。",
        "可用地址见 /api/v1/openapi.json。",
        http_status=404,
    )
    OUTPUT_NOT_FOUND = ErrorRow(
        "output_not_found",
        _R,
        "The job has no published file of that name, or it was not uploaded to object storage.",
        "List the job's outputs; what was not uploaded lies in the output directory.",
        "作业没有该名称的已发布文件，或该文件未上传到对象存储。",
        "查看作业的输出列表；未上传的文件在输出目录中。",
        http_status=404,
    )
    REQUEST_TOO_LARGE = ErrorRow(
        "request_too_large",
        _R,
        "The request's body is larger than the console takes.",
        "Send less, or raise TRAINPACK_CONSOLE_MAX_BODY_BYTES.",
        "请求体超过控制台允许的大小。",
        "减小请求体，或调大 TRAINPACK_CONSOLE_MAX_BODY_BYTES。",
        http_status=413,
    )
    RATE_LIMITED = ErrorRow(
        "rate_limited",
        _T,
        "Too many requests, wrong tokens or open event streams in a short time.",
        "Wait as long as the header Retry-After says.",
        "短时间内请求、错误令牌或事件流过多。",
        "按 Retry-After 响应头给出的时间等待。",
        http_status=429,
    )
    QUESTION_UNANSWERED = ErrorRow(
        "question_unanswered",
        _T,
        "No worker answered a question about files in time.",
        "See that a worker runs and is not busy, then ask again.",
        "没有 worker 及时回答文件相关的查询。",
        "确认有空闲的 worker 在运行，然后重试。",
        http_status=504,
    )
    # trainpack itself
    INTERNAL_ERROR = ErrorRow(
        "internal_error",
        _B,
        "trainpack itself failed.",
        "Report it with the job's log.",
        "trainpack 自身出现错误。",
        "附上作业日志反馈问题。",
    )
