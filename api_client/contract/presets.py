"""Quant types by scenario, as the module's description has them; those by platform are ``TARGETS``. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from api_client.contract.field_types import Bilingual
from api_client.contract.quant_types import QuantType

_Q = QuantType


class Preset(NamedTuple):
    """A scenario: its name, and the types usually chosen for it."""

    title: Bilingual
    quant_types: tuple[QuantType, ...]


SCENARIOS: Final[dict[str, Preset]] = {
    "general": Preset(Bilingual("General use", "通用部署"), (_Q.Q4_K_M,)),
    "quality": Preset(Bilingual("Quality first", "追求质量"), (_Q.Q5_K_M, _Q.Q8_0)),
    "memory": Preset(Bilingual("Little memory", "内存受限"), (_Q.Q3_K_M, _Q.IQ3_M)),
    "smallest": Preset(Bilingual("As small as can be", "极限压缩"), (_Q.Q2_K, _Q.IQ2_S)),
    "several": Preset(Bilingual("Several versions", "多版本分发"), (_Q.Q4_K_M, _Q.Q5_K_M, _Q.Q8_0)),
}
