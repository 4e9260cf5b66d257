"""Is a student whose adapters were trained over frozen weights in 8 bits as good as one over bfloat16?"""

from __future__ import annotations

from studies.study import Differences

QUESTION = "Does a student lose anything where the products of the frozen base are in 8-bit floats (model.frozen=fp8)?"

MARGIN = 0.03
SEEDS = (0, 1, 2, 3)


def _frozen(kind: str) -> Differences:
    return {"model": {"roles": "lora", "frozen": kind}, "trainer": {"precision": "bf16-mixed"}}


ARMS: dict[str, Differences] = {"bf16": _frozen("auto"), "fp8": _frozen("fp8")}
