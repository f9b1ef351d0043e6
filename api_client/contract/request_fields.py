"""The one table of request fields: flag, control of the new job page, texts, error codes that point at each.

Flags of ``submit`` and ``package``, the form of the new job page, descriptions in the JSON schema and the table of the
reference page come from here. Data only; ``field_values`` turns values into text and back. A plain option is a field of
``PackagingRequest`` and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from api_client.contract.errors import ErrorCode
from api_client.contract.field_types import Bilingual, Control, FieldGroup, FieldKind, Flag, RequestField, Twin

_C = ErrorCode
_K, _F, _B = FieldKind, RequestField, Bilingual
_WHAT, _HOW, _QUEUE = FieldGroup.WHAT, FieldGroup.HOW, FieldGroup.QUEUE

FIELDS: Final = (
    _F(
        "template",
        _K.TEXT,
        _WHAT,
        _B("Template.", "模板。"),
        Flag("--template", "-t", "NAME"),
        Control("template", "", _B("Template", "配置模板")),
        codes=(_C.UNKNOWN_TEMPLATE,),
    ),
    _F(
        "base_model",
        _K.PATH,
        _WHAT,
        _B(
            "Base model: directory, s3:// or hf://; the one that the checkpoint names if left out.",
            "基础模型：目录、s3:// 或 hf://；省略时取检查点所指明的。",
        ),
        Flag("--base", "-b", "PATH"),
        Control(
            "base_model",
            "",
            _B("Base model path", "基础模型路径"),
            _B(
                "Hugging Face directory with config.json and .safetensors; also s3:// or hf://owner/name.",
                "HuggingFace 格式目录（config.json 与 .safetensors），也可用 s3:// 或 hf://owner/name。",
            ),
        ),
        codes=(_C.BASE_MODEL_REQUIRED, _C.BASE_MODEL_NOT_FOUND),
    ),
    _F(
        "checkpoint",
        _K.PATH,
        _WHAT,
        _B(
            "Checkpoint: directory, RUN/latest, RUN/best, s3://; with a task also latest, best or a name.",
            "检查点：目录、RUN/latest、RUN/best、s3://；给出训练任务时还可用 latest、best 或检查点名称。",
        ),
        Flag("--checkpoint", "-c", "PATH"),
        Control(
            "checkpoint",
            "",
            _B("Checkpoint path", "检查点路径"),
            _B("A checkpoint directory, or RUN/latest, RUN/best.", "检查点目录，或 RUN/latest、RUN/best。"),
        ),
        codes=(
            *(_C.CHECKPOINT_REQUIRED, _C.CHECKPOINT_NOT_ADAPTER, _C.CHECKPOINT_IS_ADAPTER),
            *(_C.CHECKPOINT_NOT_FOUND, _C.CHECKPOINTS_EMPTY),
        ),
    ),
    _F(
        "output_dir",
        _K.PATH,
        _WHAT,
        _B("Output directory or s3://.", "输出目录或 s3://。"),
        Flag("--output", "-o", "PATH"),
        Control(
            "output_dir",
            "",
            _B("Output directory", "输出目录"),
            _B(
                "A directory of its own, e.g. RUN/package, or s3://bucket/prefix. It is made if missing.",
                "建议使用专门的目录（如 RUN/package）或 s3://bucket/prefix，不存在时自动创建。",
            ),
        ),
        codes=(_C.OUTPUT_DIR_REQUIRED, _C.OUTPUT_DIR_NOT_WRITABLE),
    ),
    _F(
        "task",
        _K.PARTS,
        _WHAT,
        _B(
            "Training task; fills in base model and output directory.",
            "训练任务；自动填入基础模型和输出目录。",
        ),
        Flag(
            "--task",
            metavar="FILE",
            about=_B(
                "Training task as a JSON file (- for standard input); fills in base model and output directory.",
                "训练任务的 JSON 文件（- 为标准输入）；自动填入基础模型和输出目录。",
            ),
        ),
    ),
    _F(
        "task.task_id",
        _K.TEXT,
        _WHAT,
        _B("Id of the training task.", "训练任务编号。"),
        control=Control("task_id", "task", _B("Task id", "任务 ID")),
    ),
    _F(
        "task.status",
        _K.CHOICE,
        _WHAT,
        _B("How the training ended; only an ended task can be packaged.", "训练状态；只有已结束的任务可以打包。"),
        control=Control("task_status", "task", _B("Status", "任务状态")),
        choices={
            "pending": _B("pending", "等待中"),
            "running": _B("running", "运行中"),
            "completed": _B("completed", "已完成"),
            "stopped": _B("stopped", "已停止"),
            "failed": _B("failed", "失败"),
        },
        codes=(_C.TASK_NOT_PACKAGEABLE,),
    ),
    _F(
        "task.kind",
        _K.CHOICE,
        _WHAT,
        _B("What kind of training it was.", "训练类型。"),
        control=Control("task_kind", "task", _B("Kind", "任务类型")),
        choices={"sft": _B("SFT", "SFT"), "pretrain": _B("pretraining", "预训练")},
    ),
    _F(
        "task.finetuning",
        _K.CHOICE,
        _WHAT,
        _B("Whether an adapter or full weights were trained.", "训练的是适配器还是全量权重。"),
        control=Control("finetuning", "task", _B("Fine-tuning", "微调方式")),
        choices={"lora": _B("LoRA", "LoRA"), "full": _B("full", "全量")},
    ),
    _F(
        "task.base_model",
        _K.PATH,
        _WHAT,
        _B("Base model that the task trained.", "任务所训练的基础模型。"),
        control=Control("task_base_model", "", _B("Base model of the task", "任务的基础模型")),
    ),
    _F(
        "task.output_dir",
        _K.PATH,
        _WHAT,
        _B("Output directory of the task, with its checkpoints.", "任务的输出目录，含各检查点。"),
        control=Control(
            "run",
            "",
            _B("Run's output directory", "训练输出目录"),
            _B(
                "A directory with checkpoint-*, or s3://bucket/prefix, as the workers see it.",
                "含 checkpoint-* 的目录或 s3://bucket/prefix，以 worker 可见的路径为准。",
            ),
        ),
    ),
    _F(
        "model_name",
        _K.TEXT,
        _WHAT,
        _B("Name of the files instead of merged_model.", "输出文件名，代替 merged_model。"),
        Flag("--model-name", metavar="NAME"),
        Control(
            "model_name",
            "more",
            _B("Model name", "模型名称"),
            _B("Replaces merged_model in the names of the files.", "替换文件名中的 merged_model。"),
        ),
    ),
    _F(
        "quant_types",
        _K.LIST,
        _HOW,
        _B(
            "Quant types, e.g. Q4_K_M, or fits, e.g. fit:5.5GiB; the template's if left out.",
            "量化类型，如 Q4_K_M，或 fit，如 fit:5.5GiB；省略时取模板的默认值。",
        ),
        Flag(
            "--quant-type",
            "-q",
            "TYPE",
            _B(
                "Quant type, e.g. Q4_K_M, or a fit, e.g. fit:5.5GiB; may be repeated or separated by commas.",
                "量化类型，如 Q4_K_M，或 fit，如 fit:5.5GiB；可重复给出或用逗号分隔。",
            ),
        ),
        Control("quant_types", "", _B("Quantization types", "量化类型")),
        codes=(
            *(_C.QUANT_TYPES_NEED_QUANTIZE, _C.QUANT_TYPES_EMPTY, _C.QUANT_TYPE_UNKNOWN, _C.QUANT_TYPE_DUPLICATE),
            *(_C.QUANT_TYPE_UNFIT, _C.IMATRIX_REQUIRED, _C.FIT_INVALID, _C.FIT_IMPOSSIBLE),
        ),
    ),
    _F(
        "fit",
        _K.PARTS,
        _HOW,
        _B("What every fit among the quant types has in common.", "量化类型中各 fit 的共同选项。"),
    ),
    _F(
        "fit.types",
        _K.TEXT,
        _HOW,
        _B(
            "Tensor types that a fit may choose from: k, k+iq, all, or a list such as Q4_K,Q6_K.",
            "fit 可以选择的张量类型：k、k+iq、all，或列表如 Q4_K,Q6_K。",
        ),
        Flag("--fit-types", metavar="TYPES"),
        Control(
            "fit_types",
            "more",
            _B("Tensor types of a fit", "fit 的张量类型"),
            _B("k runs fastest everywhere; k+iq is better below four bits.", "k 在各处最快；k+iq 在 4 bit 以下更好。"),
        ),
        codes=(_C.TENSOR_TYPE_UNKNOWN,),
    ),
    _F(
        "fit.context",
        _K.NUMBER,
        _HOW,
        _B(
            "Context, in tokens, for which fit:target: leaves memory.",
            "fit:target: 为其预留内存的上下文长度（token）。",
        ),
        Flag("--fit-context", metavar="N"),
        Control("fit_context", "more", _B("Context of a fit to a target", "按目标设备 fit 的上下文长度")),
    ),
    _F(
        "fit.sensitivity",
        _K.PATH,
        _HOW,
        _B(
            "Sensitivity file of an earlier job of the same model; the model is not run again then.",
            "同一模型先前任务的敏感度文件；给出后不再运行模型。",
        ),
        Flag("--sensitivity", metavar="FILE"),
        Control("fit_sensitivity", "more", _B("Sensitivity file of a fit", "fit 的敏感度文件")),
        codes=(_C.SENSITIVITY_INVALID,),
    ),
    _F(
        "recipe",
        _K.PARTS,
        _HOW,
        _B(
            "Types that tensors get whatever the quant type says; llama-quantize's options.",
            "不论量化类型如何，张量所用的类型；即 llama-quantize 的选项。",
        ),
    ),
    _F(
        "recipe.pure",
        _K.SWITCH,
        _HOW,
        _B("Give all tensors the quant type's own type, no mixture.", "所有张量都用量化类型本身的类型，不混合。"),
        Flag("--pure"),
        Control("recipe_pure", "more", _B("No mixture (pure)", "不混合（pure）")),
    ),
    _F(
        "recipe.leave_output_tensor",
        _K.SWITCH,
        _HOW,
        _B("Leave output.weight as it is.", "保持 output.weight 不变。"),
        Flag("--leave-output-tensor"),
        Control("recipe_leave_output_tensor", "more", _B("Leave output.weight as it is", "保持 output.weight 不变")),
    ),
    _F(
        "recipe.output_tensor_type",
        _K.TEXT,
        _HOW,
        _B("Type of output.weight, e.g. Q8_0.", "output.weight 的类型，如 Q8_0。"),
        Flag("--output-tensor-type", metavar="TYPE"),
        Control("recipe_output_tensor_type", "more", _B("Type of output.weight", "output.weight 的类型")),
    ),
    _F(
        "recipe.token_embedding_type",
        _K.TEXT,
        _HOW,
        _B("Type of the token embeddings, e.g. Q8_0.", "词嵌入的类型，如 Q8_0。"),
        Flag("--token-embedding-type", metavar="TYPE"),
        Control("recipe_token_embedding_type", "more", _B("Type of the token embeddings", "词嵌入的类型")),
    ),
    _F(
        "recipe.tensor_types",
        _K.LINES,
        _HOW,
        _B(
            "NAME=TYPE, e.g. ffn_down=Q6_K: the type of tensors in whose names the pattern NAME is found; of several "
            "the first that matches counts.",
            "NAME=TYPE，如 ffn_down=Q6_K：名称中含有模式 NAME 的张量所用类型；多条时取最先匹配的。",
        ),
        Flag(
            "--tensor-type",
            metavar="NAME=TYPE",
            about=_B(
                "Type of tensors in whose names the pattern NAME is found, e.g. ffn_down=Q6_K. May be repeated.",
                "名称中含有模式 NAME 的张量所用类型，如 ffn_down=Q6_K。可重复给出。",
            ),
        ),
        Control(
            "recipe_tensor_types",
            "more",
            _B("Types of single tensors (recipe)", "单个张量的类型（配方）"),
            _B("NAME=TYPE, one per line, as for --tensor-type-file.", "NAME=TYPE，每行一个，同 --tensor-type-file。"),
        ),
        codes=(_C.RECIPE_INVALID,),
        file_flag=Flag(
            "--tensor-type-file",
            metavar="FILE",
            about=_B(
                "File of NAME=TYPE lines (a recipe); they come after those of --tensor-type.",
                "NAME=TYPE 行的文件（配方），排在 --tensor-type 之后。",
            ),
        ),
    ),
    _F(
        "base_precision",
        _K.CHOICE,
        _HOW,
        _B(
            "Weights that the adapter is merged into: stored (as the base holds them), nf4 or nf4_nested (rounded to 4 "
            "bits as QLoRA training saw them).",
            "适配器合并到的权重：stored（按基础模型原样）、nf4 或 nf4_nested（按 QLoRA 训练所见，先舍入为 4 位）。",
        ),
        Flag("--base-precision", metavar="PRECISION"),
        Control("base_precision", "more", _B("Weights merged into", "合并所用的权重")),
        choices={
            "stored": _B("as the base holds them", "按基础模型原样"),
            "nf4": _B("rounded to NF4", "舍入为 NF4"),
            "nf4_nested": _B("rounded to NF4, nested scales (double quantization)", "舍入为 NF4，缩放因子二次量化"),
        },
    ),
    _F(
        "lattice",
        _K.CHOICE,
        _HOW,
        _B(
            "Checkpoints of quantization-aware training: auto makes blocks of weights that lie on a lattice (whole "
            "levels times a scale) exact in Q4_0, Q4_1 and Q8_0, where llama-quantize's are not; off: the bytes of "
            "llama-quantize.",
            "量化感知训练的检查点：auto 使落在格点（整数级乘缩放因子）上的权重块在 Q4_0、Q4_1、Q8_0 中完全精确"
            "（llama-quantize 做不到之处）；off：与 llama-quantize 逐字节一致。",
        ),
        Flag("--lattice", metavar="WHEN"),
        Control("lattice", "more", _B("Lattice of quantization-aware training", "量化感知训练的格点")),
        choices={
            "off": _B("as llama-quantize", "与 llama-quantize 一致"),
            "auto": _B("exact where weights lie on one", "权重落在格点上时精确保留"),
        },
    ),
    _F(
        "gguf_dtype",
        _K.CHOICE,
        _HOW,
        _B(
            "Type of the unquantized file: auto (the base model's), f32, f16, bf16.",
            "未量化文件的精度：auto（与基础模型相同）、f32、f16、bf16。",
        ),
        Flag("--gguf-dtype", metavar="DTYPE"),
        Control("gguf_dtype", "more", _B("Type of the unquantized GGUF", "未量化 GGUF 的精度")),
        choices={
            "auto": _B("as the base model", "与基础模型一致"),
            "bf16": _B("BF16", "BF16"),
            "f16": _B("F16", "F16"),
            "f32": _B("F32", "F32"),
        },
    ),
    _F(
        "projector",
        _K.CHOICE,
        _HOW,
        _B(
            "Projector for pictures and sound, as a file of its own: auto (where the model has one), off, or its type.",
            "处理图像与声音的投影文件（单独输出）：auto（模型有则生成）、off，或指定其精度。",
        ),
        Flag("--projector", metavar="TYPE"),
        Control("projector", "more", _B("Projector (mmproj)", "投影文件（mmproj）")),
        choices={
            "auto": _B("where the model has one", "模型有则生成"),
            "off": _B("none", "不生成"),
            "f16": _B("F16", "F16"),
            "bf16": _B("BF16", "BF16"),
            "f32": _B("F32", "F32"),
            "q8_0": _B("Q8_0", "Q8_0"),
        },
        codes=(_C.PROJECTOR_INVALID,),
    ),
    _F(
        "draft_head",
        _K.CHOICE,
        _HOW,
        _B(
            "Prediction layers (MTP, NextN): auto, keep, graft (what training dropped, from the base model), drop.",
            "预测层（MTP、NextN）：auto、keep（保留）、graft（训练丢弃的层取自基础模型）或 drop（略去）。",
        ),
        Flag("--draft-head", metavar="WHAT"),
        Control("draft_head", "more", _B("Prediction layers (MTP, NextN)", "预测层（MTP、NextN）")),
        choices={
            "auto": _B("kept, or taken from the base model, where there are any", "有则保留，或取自基础模型"),
            "keep": _B("kept, those of the weights", "保留权重中的预测层"),
            "graft": _B("taken from the base model where training dropped them", "训练丢弃时取自基础模型"),
            "drop": _B("left out", "略去"),
        },
        codes=(_C.DRAFT_HEAD_INVALID,),
    ),
    _F(
        "imatrix",
        _K.PARTS,
        _HOW,
        _B("Importance matrix: a file, auto, compute or off.", "重要性矩阵：文件、auto、compute 或 off。"),
        Flag("--imatrix", metavar="FILE"),
    ),
    _F(
        "imatrix.mode",
        _K.CHOICE,
        _HOW,
        _B(
            "auto: computed where a quant type needs one; compute: always; file: the one at path; off: none.",
            "auto：量化类型需要时计算；compute：总是计算；file：使用 path 处的文件；off：不使用。",
        ),
        control=Control("imatrix", "more", _B("Importance matrix", "重要性矩阵")),
        choices={
            "auto": _B("Compute it where a type needs it", "类型需要时计算"),
            "compute": _B("Always compute it", "总是计算"),
            "file": _B("Use a file", "使用文件"),
            "off": _B("Off", "关闭"),
        },
    ),
    _F(
        "imatrix.path",
        _K.PATH,
        _HOW,
        _B("An importance matrix that exists, GGUF or legacy form.", "已有的重要性矩阵，GGUF 或旧格式。"),
        control=Control(
            "imatrix_path",
            "more",
            _B("Importance matrix file", "重要性矩阵文件"),
            _B("Only with “Use a file”.", "仅在选择“使用文件”时填写。"),
        ),
        codes=(_C.IMATRIX_INVALID, _C.IMATRIX_MISMATCH),
    ),
    _F(
        "imatrix.calibration",
        _K.PATH,
        _HOW,
        _B("Text to compute the importance matrix from.", "用于计算重要性矩阵的文本。"),
        Flag("--calibration", metavar="FILE"),
        Control(
            "imatrix_calibration",
            "more",
            _B("Calibration text", "校准文本"),
            _B(
                "Only with “Always compute it”; the text that comes with trainpack if left empty.",
                "仅在选择“总是计算”时填写；留空则使用 trainpack 自带的文本。",
            ),
        ),
        codes=(_C.CALIBRATION_TOO_SHORT,),
    ),
    _F(
        "imatrix.chunks",
        _K.NUMBER,
        _HOW,
        _B("How many chunks of the calibration text to use; all if left out.", "使用校准文本的多少块；省略则用全部。"),
        Flag("--chunks", metavar="N"),
        Control(
            "imatrix_chunks",
            "more",
            _B("Chunks of the calibration text", "校准文本块数"),
            _B("Only with “Always compute it”; all if left empty.", "仅在选择“总是计算”时填写；留空则用全部。"),
        ),
    ),
    _F(
        "evaluation",
        _K.PARTS,
        _HOW,
        _B("How the files are compared with the model they were made from.", "如何将文件与其来源模型比较。"),
    ),
    _F(
        "evaluation.level",
        _K.CHOICE,
        _HOW,
        _B(
            "Measure how close each file is to the model: off, quick (about a minute) or full (all of the text).",
            "测量每个文件与模型的接近程度：off（关闭）、quick（约一分钟）或 full（全部文本）。",
        ),
        Flag("--evaluate", metavar="LEVEL"),
        Control("evaluation", "more", _B("Measure quality", "测量质量")),
        choices={
            "off": _B("Off", "关闭"),
            "quick": _B("Quick, about a minute", "快速，约一分钟"),
            "full": _B("Full, all of the text", "完整，全部文本"),
        },
    ),
    _F(
        "evaluation.text",
        _K.PATH,
        _HOW,
        _B("Text to measure on; the one that comes with trainpack if left out.", "用于测量的文本；省略则用自带文本。"),
        Flag("--eval-text", metavar="FILE"),
        Control("evaluation_text", "more", _B("Evaluation text", "评估文本")),
    ),
    _F(
        "evaluation.dataset",
        _K.PATH,
        _HOW,
        _B(
            "Training or evaluation data to measure on: JSONL or JSON with messages, conversations, prompt and "
            "completion, instruction and output, or text.",
            "用于测量的训练或评估数据：JSONL 或 JSON，含 messages、conversations、prompt 与 completion、"
            "instruction 与 output 或 text。",
        ),
        Flag("--eval-dataset", metavar="FILE"),
        Control("evaluation_dataset", "more", _B("Evaluation data", "评估数据")),
        codes=(_C.DATASET_INVALID,),
    ),
    _F(
        "evaluation.questions",
        _K.PAIRS,
        _HOW,
        _B(
            "Questions to ask of the model and of every file, each with a text that the answer has to hold.",
            "向模型和每个文件提出的问题，以及回答中必须包含的文字。",
        ),
        Flag(
            "--golden",
            metavar="QUESTION=TEXT",
            about=_B(
                "Ask the model and every file; the answer has to hold the text, if any. May be repeated.",
                "向模型和每个文件提问；若给出文字，回答必须包含它。可重复给出。",
            ),
        ),
        Control(
            "evaluation_questions",
            "more",
            _B("Questions", "问题"),
            _B("question=expected text, one per line.", "问题=期望文字，每行一个。"),
        ),
    ),
    _F(
        "evaluation.questions_file",
        _K.PATH,
        _HOW,
        _B(
            "File of questions: JSON Lines or a JSON list of prompt and expected, or a prompt a line.",
            "问题文件：含 prompt 与 expected 的 JSONL 或 JSON 列表，或每行一个问题。",
        ),
        Flag("--golden-file", metavar="FILE"),
        Control("evaluation_questions_file", "more", _B("File of questions", "问题文件")),
    ),
    _F(
        "evaluation.max_mean_kld",
        _K.FRACTION,
        _HOW,
        _B("Largest mean KLD of a file, in nats a token.", "文件的平均 KLD 上限（nat/token）。"),
        Flag("--max-kld", metavar="NATS"),
        Control("evaluation_max_mean_kld", "more", _B("Largest mean KLD", "平均 KLD 上限")),
        codes=(_C.QUALITY_BELOW_THRESHOLD,),
    ),
    _F(
        "evaluation.min_retention",
        _K.FRACTION,
        _HOW,
        _B("Smallest share of the training that a file keeps, 0 to 1.", "文件至少保留的训练比例，0 到 1。"),
        Flag("--min-retention", metavar="SHARE"),
        Control("evaluation_min_retention", "more", _B("Smallest share of the training kept", "最低训练保留率")),
    ),
    _F(
        "evaluation.on_fail",
        _K.CHOICE,
        _HOW,
        _B(
            "What a bound that is not kept does: fail the job, or warn.",
            "未达到界限时：使作业失败（fail）或仅警告（warn）。",
        ),
        Flag("--on-low-quality", metavar="fail|warn"),
        Control("evaluation_on_fail", "more", _B("Where a bound is not kept", "未达到界限时")),
        choices={"fail": _B("Fail the job", "作业失败"), "warn": _B("Only warn", "仅警告")},
    ),
    _F(
        "options",
        _K.PARTS,
        _HOW,
        _B("The four switches; only the template custom lets them be set.", "四个开关；仅模板 custom 可以设置。"),
        Flag(
            "--set",
            metavar="OPTION=VALUE",
            about=_B(
                "An option, e.g. export_lora=on; the four switches only with --template custom. May be repeated.",
                "设置选项，如 export_lora=on；四个开关仅限 --template custom。可重复给出。",
            ),
        ),
        codes=(
            *(_C.TEMPLATE_LOCKED, _C.QUANTIZE_NEEDS_EXPORT, _C.MERGE_EXCLUDES_LORA_EXPORT),
            _C.NOTHING_TO_DO,
        ),
    ),
    _F(
        "options.merge_lora",
        _K.SWITCH,
        _HOW,
        _B("Merge the adapter into the base model.", "将适配器合并到基础模型。"),
        control=Control("switches", "", _B("Merge LoRA weights to base model", "合并 LoRA 权重到基础模型")),
    ),
    _F(
        "options.export_gguf",
        _K.SWITCH,
        _HOW,
        _B("Export the model as GGUF.", "将模型导出为 GGUF。"),
        control=Control("switches", "", _B("Export base model as GGUF", "导出基础模型为 GGUF 格式")),
    ),
    _F(
        "options.quantize",
        _K.SWITCH,
        _HOW,
        _B("Quantize the exported model.", "量化导出的模型。"),
        control=Control("switches", "", _B("Quantize model", "量化模型")),
    ),
    _F(
        "options.export_lora",
        _K.SWITCH,
        _HOW,
        _B("Export the adapter as GGUF.", "将适配器导出为 GGUF。"),
        control=Control("switches", "", _B("Export LoRA as GGUF", "导出 LoRA 为 GGUF 格式")),
    ),
    _F(
        "keep_unquantized",
        _K.SWITCH,
        _HOW,
        _B("Keep the unquantized file beside the quantized ones.", "保留未量化的文件。"),
        Flag(
            "--no-keep-unquantized",
            about=_B("Drop the unquantized file.", "不保留未量化的文件。"),
            twins=(Twin("--keep-unquantized", _B("Keep it; the default.", "保留（默认）。"), turns=False),),
        ),
        Control("keep_unquantized", "more", _B("Keep the unquantized GGUF", "保留未量化的 GGUF")),
    ),
    _F(
        "save_merged",
        _K.SWITCH,
        _HOW,
        _B("Also write the merged model as a Hugging Face directory.", "同时写出合并后的 Hugging Face 目录。"),
        Flag("--save-merged"),
        Control(
            "save_merged", "more", _B("Also write the merged Hugging Face model", "同时写出合并后的 Hugging Face 模型")
        ),
    ),
    _F(
        "companions",
        _K.SWITCH,
        _HOW,
        _B(
            "Also write a model card (README.md) and an Ollama Modelfile.",
            "同时写出模型卡（README.md）和 Ollama Modelfile。",
        ),
        Flag(
            "--companions",
            twins=(
                Twin("--model-card", _B("The same as --companions.", "同 --companions。")),
                Twin("--ollama", _B("The same as --companions.", "同 --companions。")),
            ),
        ),
        Control(
            "companions", "more", _B("Also write a model card and a Modelfile", "同时写出模型卡和 Ollama Modelfile")
        ),
    ),
    _F(
        "split_max_size_bytes",
        _K.SIZE,
        _HOW,
        _B(
            "Files above this size, in bytes, are split in llama.cpp's shard naming.",
            "超过该字节数的文件按 llama.cpp 的命名分片。",
        ),
        Flag(
            "--split-max-size",
            metavar="SIZE",
            about=_B("Split larger files, e.g. 500M or 2G (decimal).", "超过该大小则分片，如 500M 或 2G（十进制）。"),
        ),
        Control(
            "split_max_size_bytes",
            "more",
            _B("Split files above", "分片大小"),
            _B(
                "Bytes, or e.g. 500M, 2G (decimal); not split if left empty.",
                "字节数，或如 500M、2G（十进制）；留空则不分片。",
            ),
        ),
    ),
    _F(
        "overwrite",
        _K.SWITCH,
        _HOW,
        _B("Replace files of another job.", "覆盖其他作业的文件。"),
        Flag("--overwrite"),
        Control(
            "overwrite", "more", _B("Replace files of earlier jobs in this directory", "覆盖该目录中先前作业的文件")
        ),
    ),
    _F(
        "upload",
        _K.SWITCH,
        _HOW,
        _B(
            "Upload the outputs to object storage, where the workers have one.",
            "将输出上传到对象存储（worker 配有对象存储时）。",
        ),
        Flag("--no-upload", about=_B("Keep outputs out of object storage.", "不上传到对象存储。")),
        Control("upload", "more", _B("Upload the outputs to object storage", "将输出上传到对象存储")),
    ),
    _F(
        "upload_to",
        _K.TEXT,
        _HOW,
        _B(
            "Where the files are published as well: hf://owner/name, or oci://registry/repository:tag.",
            "同时发布到：hf://owner/name 或 oci://registry/repository:tag。",
        ),
        Flag("--upload-to", metavar="URL"),
        Control(
            "upload_to",
            "more",
            _B("Publish to as well", "同时发布到"),
            _B(
                "hf://owner/name (made private), or oci://registry/repository:tag.",
                "hf://owner/name（新建时为私有）或 oci://registry/repository:tag。",
            ),
        ),
    ),
    _F(
        "labels",
        _K.PAIRS,
        _QUEUE,
        _B("Labels to find the job by.", "作业标签，便于查找。"),
        Flag(
            "--label",
            "-l",
            "KEY=VALUE",
            _B("Label to find the job by. May be repeated.", "作业标签，便于查找。可重复给出。"),
        ),
        Control("labels", "more", _B("Labels", "标签"), _B("key=value, one per line.", "key=value，每行一个。")),
    ),
    _F(
        "priority",
        _K.NUMBER,
        _QUEUE,
        _B("0 to 9; 9 is the most urgent, 5 the default.", "优先级 0 到 9，9 最紧急，默认 5。"),
        Flag("--priority", metavar="N"),
        Control("priority", "more", _B("Priority", "优先级"), _B("9 is the most urgent.", "9 为最紧急。")),
    ),
    _F(
        "idempotency_key",
        _K.TEXT,
        _QUEUE,
        _B("Submitting again with the same key gives the same job.", "用相同的键再次提交会得到同一个作业。"),
        Flag("--idempotency-key", metavar="KEY"),
        codes=(_C.IDEMPOTENCY_CONFLICT,),
    ),
    _F(
        "callback_url",
        _K.TEXT,
        _QUEUE,
        _B(
            "Where the job's end is announced: http(s)://; signed, see the documentation.",
            "作业结束时通知的地址：http(s)://；带签名，见文档。",
        ),
        Flag("--callback-url", metavar="URL"),
        Control(
            "callback_url",
            "more",
            _B("Callback URL", "回调地址"),
            _B("Told when the job has ended, with a signature.", "作业结束时通知该地址，带签名。"),
        ),
        codes=(_C.CALLBACKS_OFF,),
    ),
)

FIELD_OF: Final[dict[str, RequestField]] = {row.path: row for row in FIELDS}
"""The table by path."""


def control_of(path: str) -> str | None:
    """Name of the control that stands for a field, e.g. for ``quant_types.0``; a field with parts has its first one's.

    ``None`` where the page does not ask for it.
    """
    while path and path not in FIELD_OF:
        path = path.rpartition(".")[0]
    rows = (row for row in FIELDS if path and (row.path == path or row.path.startswith(f"{path}.")))
    return next((row.control.name for row in rows if row.control), None)


CONTROL_OF_CODE: Final[dict[ErrorCode, str]] = {
    code: name for row in FIELDS for code in row.codes if (name := control_of(row.path)) is not None
}
"""The control that an error code points at."""


def describe(prefix: str) -> Callable[[dict[str, Any]], None]:
    """Puts the table's texts into the JSON schema of a request's part, whose paths begin with ``prefix``."""

    def add(schema: dict[str, Any]) -> None:
        for name, value in schema["properties"].items():
            value["description"] = FIELD_OF[prefix + name].about.en

    return add
