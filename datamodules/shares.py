"""How a run's samples divide over categories: shares of the batch, whole numbers that follow them, and how many of the
data's samples a run uses at all. Exact fractions; read without torch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

from workbench.common.errors import UserError
from workbench.recipe.config import Mixture

_LARGEST_DENOMINATOR = 10**6


def advance_quotas(counts: Sequence[int], total: int, shares: Sequence[int]) -> list[int]:
    """Counts after `total` samples, from the `counts` before: each is floor or ceil of total * share / sum(shares).

    Args:
        counts: what an earlier call returned for a smaller total, or zeros.
        shares: positive integers.
    """
    whole = sum(shares)
    after = [max(count, total * share // whole) for count, share in zip(counts, shares, strict=True)]
    open_seats = total - sum(after)
    if open_seats:
        # nobody gets more than the upper quota; of the others, the one whose next sample is due first comes first
        eligible = [i for i, share in enumerate(shares) if after[i] * whole < total * share]
        for i in sorted(eligible, key=lambda i: -((-(after[i] + 1) * whole) // shares[i]))[:open_seats]:
            after[i] += 1
    return after


def category_shares(categories: Sequence[str], num_samples: Sequence[int], mixture: Mixture) -> list[Fraction]:
    """Share of each category (`task/name`) in the whole batch. UserError if something with weight has no samples."""
    there = ", ".join(name for name, num in zip(categories, num_samples, strict=True) if num) or "nothing"
    shares = dict.fromkeys(categories, Fraction(0))
    for task, of_task in mixture.tasks.items():
        weight = _fraction(of_task)
        if not weight:
            continue
        of_data = {
            name: Fraction(int(num))
            for name, num in zip(categories, num_samples, strict=True)
            if name.startswith(f"{task}/") and num
        }
        if not of_data:
            raise UserError(
                f"mixture.tasks.{task} is {float(weight):g}, but the data have no such samples, only {there}"
                f"{_for_these_data(categories, num_samples)}"
            )
        chosen = mixture.categories.get(task)
        weights = {f"{task}/{name}": _fraction(value) for name, value in chosen.items() if value} if chosen else of_data
        for name, value in weights.items():
            if name not in of_data:
                key = f"mixture.categories.{name.replace('/', '.', 1)}"
                raise UserError(f"{key} is {float(value):g}, but the data have no such samples, only {there}")
            shares[name] = weight * value / sum(weights.values())
    return list(shares.values())


def _for_these_data(categories: Sequence[str], num_samples: Sequence[int]) -> str:
    """What to set where all samples are of one task."""
    tasks = {name.partition("/")[0] for name, num in zip(categories, num_samples, strict=True) if num}
    return f"; for these data set 'mixture.tasks={{{tasks.pop()}: 1}}'" if len(tasks) == 1 else ""


def used_samples(
    categories: Sequence[str], num_samples: Sequence[int], shares: Sequence[Fraction], mixture: Mixture
) -> list[int]:
    """How many samples of each category a run uses: all, or as many as `mixture.prompts` or `prompt_share` leave.

    Raises: UserError if a category with weight has fewer than it should give, or should give none.
    """
    used = [int(num) for num in num_samples]
    planned = [i for i, share in enumerate(shares) if share]
    if mixture.prompt_share < 1:
        for i in planned:
            used[i] = max(1, round(mixture.prompt_share * used[i]))
    if not mixture.prompts:
        return used
    quotas = advance_quotas([0] * len(planned), mixture.prompts, integers([shares[i] for i in planned]))
    for i, quota in zip(planned, quotas, strict=True):
        if not 0 < quota <= used[i]:
            raise UserError(
                f"mixture.prompts={mixture.prompts} asks for {quota} samples of {categories[i]}, the data have "
                f"{used[i]}: choose {'more' if quota == 0 else 'fewer'}"
            )
        used[i] = quota
    return used


def integers(shares: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the ratio of `shares`."""
    denominator = lcm(*(share.denominator for share in shares))
    whole = [share.numerator * (denominator // share.denominator) for share in shares]
    return [value // gcd(*whole) for value in whole]


def _fraction(weight: float) -> Fraction:
    exact = Fraction(weight).limit_denominator(_LARGEST_DENOMINATOR)
    return exact if exact or not weight else Fraction(1, _LARGEST_DENOMINATOR)
