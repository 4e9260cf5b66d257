"""Values that are not finite are found in every dtype that weights come in, wherever they stand."""

from __future__ import annotations

import pytest
import torch

from workbench.backbones.finite import is_finite

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_among_many_is_found(dtype: torch.dtype, value: float) -> None:
    values = torch.randn(333, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(values) and is_finite(values[:0])
    if torch.finfo(dtype).bits == 8 and not torch.tensor(value).to(dtype).float().isfinite().logical_not():
        pytest.skip(f"{dtype} has no {value}")
    for place in (0, 100, 332):
        broken = values.clone()
        broken[place] = value
        assert not is_finite(broken)
