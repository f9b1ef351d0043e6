"""Messages of a job's log in the reader's language. The log is stored in one language; this knows its sentences.

Each row is a sentence as the service writes it, its parts named by number, and the same in Chinese. A message that no
row knows (of another version, or of a program's output) is shown as it is. Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from api_client.words.language import Language

MESSAGES_ZH: Final[dict[str, str]] = {
    # a job's life
    "Job submitted": "作业已提交",
    "Job succeeded": "作业成功",
    "Job cancelled": "作业已取消",
    "Job failed in {0}": "作业在 {0} 阶段失败",
    "Job replayed from {0}": "作业从 {0} 阶段重新执行",
    "Cancel requested": "已请求取消",
    "{0} finished": "{0} 已完成",
    "Callback delivered": "回调已投递",
    "Callback not delivered ({0}), given up": "回调未投递（{0}），已放弃",
    "Callback not delivered ({0}), next try in {1} s": "回调未投递（{0}），{1} 秒后重试",
    "Callback dropped: the job was replayed before it was delivered": "回调已丢弃：投递前作业已重新执行",
    "Attempt {0} started": "第 {0} 次尝试开始",
    "Attempt retried, next in {0} s: {1}": "本次尝试失败，{0} 秒后重试：{1}",
    "Attempt crashed, next in {0} s: {1}": "本次尝试崩溃，{0} 秒后重试：{1}",
    "Attempt rescued, next in {0} s: {1}": "本次尝试已救回，{0} 秒后重试：{1}",
    "Attempt failed: {0}": "本次尝试失败：{0}",
    "Attempt crashed: {0}": "本次尝试崩溃：{0}",
    "Attempt rescued: {0}": "本次尝试已救回：{0}",
    "Attempt handed back": "本次尝试已交还",
    "Attempt cancelled": "本次尝试已取消",
    "Host {0} is gone; the stage moves on": "主机 {0} 已离线，该阶段转到其他主机",
    "{0} older entries were dropped": "较早的 {0} 条日志已丢弃",
    # prepare
    "Base model {0}: {1}, {2} tensors, {3}": "基础模型 {0}：{1}，{2} 个张量，{3}",
    "Base model {0} of the task does not exist; taking {1}, which {2} names": (
        "任务的基础模型 {0} 不存在，改用 {2} 指明的 {1}"
    ),
    "Its {0} weights are read as plain {1}, as transformers makes them": (
        "其 {0} 权重按 transformers 的方式还原为 {1} 读取"
    ),
    "Checkpoint {0}: {1} adapter, {2} tensors": "检查点 {0}：{1} 适配器，{2} 个张量",
    "Checkpoint {0} of {1} is {2}": "{1} 的检查点 {0} 即 {2}",
    "{0} is newer than {1}, but cannot be packaged: {2}": "{0} 比 {1} 新，但无法打包：{2}",
    "{0} of the checkpoint is not part of what is packaged": "检查点中的 {0} 不参与打包",
    "{0} of the checkpoint holds trained weights; they replace the base model's": (
        "检查点中的 {0} 含训练后的权重，将替换基础模型的对应权重"
    ),
    "Tokenizer from {0}": "分词器来自 {0}",
    "Space: {0} needed": "需要空间：{0}",
    "Only the text model is packaged: {0}": "仅打包文本模型：{0}",
    "Only the text model is packaged: {0} ({1})": "仅打包文本模型：{0}（{1}）",
    "{0} prediction layers (MTP, NextN) are kept": "保留 {0} 个预测层（MTP、NextN）",
    "{0} prediction layers (MTP, NextN) are taken from the base model {1}": (
        "{0} 个预测层（MTP、NextN）取自基础模型 {1}"
    ),
    "Prediction layers (MTP, NextN) are left out, as draft_head says": "按 draft_head 的要求略去预测层（MTP、NextN）",
    "Prediction layers (MTP, NextN) are left out: {0}": "预测层（MTP、NextN）被略去：{0}",
    "what the adapter changes in prediction layers is left out with them: {0}": (
        "适配器在预测层中的改动随预测层一并略去：{0}"
    ),
    # merge, convert, LoRA
    "The adapter changes {0} of {1} tensors": "适配器改变了 {1} 个张量中的 {0} 个",
    (
        "Trained on {0} weights, by {1}: the base merged into differs from them by {2} times what the adapter changes "
        "({3} against {4} of the weights, measured on {5} of {6})"
    ): "据 {1}，适配器在 {0} 权重上训练：合并所用的基础模型与其差异为适配器改变量的 {2} 倍（占权重 {3} 对 {4}，"
    "测量了 {6} 个权重中的 {5} 个）",
    (
        "That is more than {0} times: what was learned may not outweigh the change of base; "
        "compare with a merge into the weights that it was trained on (base_precision)"
    ): "超过 {0} 倍：所学内容可能不足以抵消基础模型的差异，请与合并到训练所用权重（base_precision）的结果比较",
    "{0}: the merged model in {1} files": "{0}：合并后的模型，共 {1} 个文件",
    "{0}: {1} tensors, {2} parameters": "{0}：{1} 个张量，{2} 个参数",
    "{0} is not kept and not written: {1} tensors, {2} parameters, made as they are quantized": (
        "{0} 不保留也不写出：{1} 个张量，{2} 个参数，量化时直接生成"
    ),
    "Went on from {0} bytes that an earlier attempt had written": "从之前尝试已写入的 {0} 字节处继续",
    "{0}: {1} adapted tensors, rank {2}": "{0}：{1} 个适配张量，秩 {2}",
    "{0} applies after the tokens {1} (aLoRA)": "{0} 在 token {1} 之后生效（aLoRA）",
    # importance matrix, sensitivities
    "The importance matrix is that in {0}": "使用 {0} 中的重要性矩阵",
    "Importance matrix from {0} tokens of {1} on {2}": "在 {2} 上由 {1} 的 {0} 个 token 计算出重要性矩阵",
    "{0} fits the model: {1} tensors with weights, {2} without": "{0} 与模型匹配：{1} 个张量有权重，{2} 个没有",
    "No sample of {0} is left to calibrate with": "{0} 中没有剩余样本可用于校准",
    "{0} of {1} samples of {2} are also in {3}, which is measured on, and are not calibrated with": (
        "{2} 的 {1} 个样本中有 {0} 个也在用于评估的 {3} 中，不用于校准"
    ),
    "{0} samples are longer than {1} tokens; their beginnings were run": (
        "{0} 个样本超过 {1} 个 token，只运行了开头部分"
    ),
    "The calibration text shipped with trainpack is used; text like your own data gives better files": (
        "使用 trainpack 自带的校准文本；使用与自有数据相近的文本效果更好"
    ),
    "{0} weights have no entry, {1} have experts no token reached": (
        "{0} 个权重没有条目，{1} 个含未被任何 token 触及的专家"
    ),
    "{0}: sensitivities from {1} tokens of {2}": "{0}：由 {2} 的 {1} 个 token 得到的敏感度",
    "Sensitivities from {0} tokens of {1} on {2}": "在 {2} 上由 {1} 的 {0} 个 token 计算出敏感度",
    "The model cannot be run backward; errors are weighed by the importance matrix alone: {0}": (
        "无法对模型反向计算，误差仅按重要性矩阵加权：{0}"
    ),
    "{0} weights have no sensitivity and keep the type that a stock mixture gives them": (
        "{0} 个权重没有敏感度，保持标准混合方案的类型"
    ),
    # quantize
    "{0}: {1} bits per weight{2}": "{0}：每权重 {1} 位{2}",
    (
        "{0} of {1} quantized tensors lie on the lattice of Q4_0, as after quantization-aware training: "
        "the quant type Q4_0 with `lattice: auto` holds them exactly"
    ): (
        "{1} 个量化张量中有 {0} 个落在 Q4_0 的格点上（如经量化感知训练）："
        "量化类型 Q4_0 配合 `lattice: auto` 可完全精确保留"
    ),
    (
        "{0} of {1} quantized tensors lie on the lattice of MXFP4: "
        "the quant type MXFP4_MOE holds those of experts exactly"
    ): "{1} 个量化张量中有 {0} 个落在 MXFP4 的格点上：量化类型 MXFP4_MOE 可完全精确保留其中的专家权重",
    "{0}: {1} tensors that lie on a lattice are of types that cannot hold it ({2}); a recipe can name Q4_0 for them": (
        "{0}：{1} 个落在格点上的张量采用了不能保留格点的类型（{2}）；可用配方为其指定 Q4_0"
    ),
    "{0}: no tensor is made of a type that can hold a lattice exactly": "{0}：没有张量采用能精确保留格点的类型",
    "{0}: {1} of {2} weights in {3} tensors are those of the checkpoint ({4} as llama-quantize makes them)": (
        "{0}：{3} 个张量的 {2} 个权重中有 {1} 个与检查点完全一致（llama-quantize 的结果为 {4} 个）"
    ),
    "{0} is already made": "{0} 已生成",
    "{0} has come out the same as {1}: made once, linked": "{0} 与 {1} 相同：只生成一次并链接",
    "{0} is split into {1} files": "{0} 分为 {1} 个文件",
    "{0} tensors priced in {1} types": "已对 {0} 个张量按 {1} 种类型计价",
    "Fits are chosen by prediction alone, as the model cannot be run: {0}": "模型无法运行，仅按预测选择方案：{0}",
    "{0}: {1}, {2} bytes, mean KLD predicted {3}": "{0}：{1}，{2} 字节，预测平均 KLD {3}",
    # verify
    "{0} loads and {1}": "{0} 可以加载，{1}",
    "{0} is well formed": "{0} 结构正确",
    "{0} fits {1} tensors of its base model": "{0} 与基础模型的 {1} 个张量匹配",
    "{0} beside {1} {2}": "{0} 与 {1} 一起：{2}",
    "llama.cpp is not used here: structure is checked, loading is not": "此处未使用 llama.cpp：只检查结构，不检查加载",
    "llama.cpp is not installed here, so no file is asked": "此处未安装 llama.cpp，因此不对文件提问",
    "{0}: {1} of {2} tokens drafted by its prediction layers are accepted": (
        "{0}：预测层起草的 {2} 个 token 中有 {1} 个被接受"
    ),
    "{0}: llama.cpp does not draft with its prediction layers here: {1}": "{0}：llama.cpp 在此不使用其预测层起草：{1}",
    # evaluate
    "The trained model itself is not asked: {0}": "不对训练后的模型提问：{0}",
    "Compared over {0} tokens of {1} in {2} s, {3} of them scored": (
        "用 {2} 秒比较了 {1} 的 {0} 个 token，其中 {3} 个计分"
    ),
    "The files cannot be measured: {0}": "无法测量文件：{0}",
    "{0} samples were left out: {1}": "略去 {0} 个样本：{1}",
    "{0} cannot be traced back to the training: {1}": "无法将 {0} 追溯到训练：{1}",
    "{0} differs from the training at {1}: {2}": "{0} 与训练在 {1} 处不一致：{2}",
    "Data of the run is passed over: {0}": "忽略训练数据：{0}",
    "The run's own data, by {0}: {1}{2}": "由 {0} 指明的训练数据：{1}{2}",
    "The run's own data is not measured on: {0}": "不使用训练数据测量：{0}",
    "The run's own data is not calibrated with: {0}": "不使用训练数据校准：{0}",
    # publish
    "Published {0} files": "已发布 {0} 个文件",
    "Uploaded and verified {0}": "已上传并校验 {0}",
    "Published to {0} as commit {1}; only its owner sees it": "已发布到 {0}，提交为 {1}，仅所有者可见",
    "Published to {0} as commit {1}; everybody sees it": "已发布到 {0}，提交为 {1}，所有人可见",
    "Published the image {0}/{1}:{2}": "已发布镜像 {0}/{1}:{2}",
    "{0} of {1} was left as it is: it is another one than this job's, and overwrite is off": (
        "{1} 中的 {0} 保持原样：内容与本作业的不同，且未开启 overwrite"
    ),
    "Waiting for another job to publish into {0}": "等待另一个作业完成向 {0} 的发布",
}
_PART: Final = re.compile(r"\{(\d)\}")
_MOST_CHARACTERS: Final = 4000


def log_message(language: Language, message: str) -> str:
    """A message of a log, in a language as far as it is known there."""
    if language is Language.EN or len(message) > _MOST_CHARACTERS:
        return message
    for numbers, fixed, chinese in _rows():
        values = _values(fixed, message)
        if values is not None:
            parts = dict(zip(numbers, values, strict=True))
            return _PART.sub(functools.partial(_part, parts), chinese)
    return message


def _part(parts: Mapping[str, str], match: re.Match[str]) -> str:
    return parts[match[1]]


@functools.cache
def _rows() -> tuple[tuple[Sequence[str], Sequence[str], str], ...]:
    """Numbers of the parts, the fixed text around them, the Chinese; what has most of it fixed first."""
    rows = [(*_taken_apart(english), chinese) for english, chinese in MESSAGES_ZH.items()]
    return tuple(sorted(rows, key=lambda row: sum(map(len, row[1])), reverse=True))


def _taken_apart(english: str) -> tuple[Sequence[str], Sequence[str]]:
    pieces = _PART.split(english)
    return pieces[1::2], pieces[::2]


def _values(fixed: Sequence[str], message: str) -> list[str] | None:
    """What stands between the fixed texts, each found where it first comes: no message takes longer than its length."""
    first, *between = fixed
    if not between:
        return [] if message == first else None
    last = between.pop()
    if not message.startswith(first) or not message.endswith(last):
        return None
    at, end, values = len(first), len(message) - len(last), []
    for text in between:
        at_literal = message.find(text, at, end)
        if at_literal < 0:
            return None
        values.append(message[at:at_literal])
        at = at_literal + len(text)
    return [*values, message[at:end]] if at <= end else None
