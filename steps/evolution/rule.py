"""The decision rule of architecture evolution: which changes a round makes, from bounds of what they lose. Pure arithmetic.

A change is the removal of a unit, which saves latency, or the copy of a block, which costs some. What it loses is CLIP score; a
copy that helps loses less than nothing. Decisions see *bounds* of losses, so that what is uncertain counts as bad.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from steps.evolution.evidence import Estimate

_MARGIN = 1e-5  # the solver meets constraints to 1e-6


@dataclass(frozen=True)
class Change:
    """One possible change of an architecture; `blocks` are those that it removes or copies."""

    kind: Literal["remove", "copy"]
    target: str  # a unit to remove, a block to copy
    blocks: frozenset[str]
    saves: float  # latency, in the table's unit

    @property
    def key(self) -> str:
        """Name of this change among all."""
        return f"{self.kind} {self.target}"


def choose(
    changes: Sequence[Change], losses: Mapping[str, float], *, gap: float, actions: int, later: int
) -> list[Change]:
    """The changes of one round, at most `actions`, in order: the plan's first ones while the budget is unmet, else what pays.

    `losses` are bounds by the change's key, `gap` is what is still to be saved (at most 0: the budget is met), `later` the
    number of actions of the rounds to come.
    """
    return _considered(changes, losses, gap=gap, actions=actions, later=later)[:actions]


def plan_removals(
    changes: Sequence[Change], losses: Mapping[str, float], *, gap: float, most: int
) -> list[Change]:
    """The removals that save `gap` together at the least sum of losses, at most `most`; empty when there are none.

    A loss below 0 counts as 0: what is harmless goes only where it is needed. Among equals the plan that saves least is
    taken. The order is that of loss per latency saved, the smallest first (ties: the larger latency).
    """
    removals = [change for change in changes if change.kind == "remove" and change.saves > 0.0]
    if not reachable(removals, gap=gap, most=most):
        return []
    cost = np.array([max(losses[change.key], 0.0) for change in removals])
    saves = np.array([change.saves for change in removals]) / gap
    blocks = sorted(_blocks(removals))
    once = np.array([[block in change.blocks for change in removals] for block in blocks], dtype=float)
    found = milp(
        cost / (cost.max() or 1.0) + 1e-3 * saves,  # the second term breaks ties
        integrality=np.ones(len(removals)),
        bounds=Bounds(0.0, 1.0),
        constraints=[
            LinearConstraint(saves[None], lb=1.0 + _MARGIN),
            LinearConstraint(np.ones((1, len(removals))), ub=most),
            LinearConstraint(once, ub=1.0),
        ],
        options={"mip_rel_gap": 0.0, "presolve": False},  # its presolve prints
    )
    plan = [change for change, taken in zip(removals, found.x, strict=True) if taken > 0.5]
    return sorted(plan, key=lambda change: (max(losses[change.key], 0.0) / change.saves, -change.saves))


def reachable(changes: Iterable[Change], *, gap: float, most: int) -> bool:
    """True when at most `most` removals save `gap`."""
    return gap * (1.0 + _MARGIN) <= best_saving(changes, most)


def best_saving(changes: Iterable[Change], most: int) -> float:
    """The most latency that so many removals save: the largest first."""
    gone: set[str] = set()
    saved = 0.0
    for change in sorted(changes, key=lambda change: -change.saves):
        if most > 0 and change.saves > 0.0 and not gone & change.blocks:
            gone |= change.blocks
            saved += change.saves
            most -= 1
    return saved


def paying_exchanges(
    changes: Sequence[Change], losses: Mapping[str, float], *, slack: float, actions: int
) -> list[Change]:
    """Copies, swaps (a removal, then a copy) and removals that gain by their bounds, within `slack` of latency.

    The largest gain goes first. A block is touched once.
    """
    removals: list[Change | None] = [None, *(change for change in changes if change.kind == "remove")]
    copies: list[Change | None] = [None, *(change for change in changes if change.kind == "copy")]
    pairs = [[change for change in pair if change is not None] for pair in product(removals, copies)]
    gains = [(-sum(losses[change.key] for change in pair), pair) for pair in pairs]
    gains.sort(key=lambda item: (-item[0], -sum(change.saves for change in item[1])))
    chosen: list[Change] = []
    for gain, pair in gains:
        saved = sum(change.saves for change in pair)
        apart = len(_disjoint(pair, chosen)) == len(pair) and len(_blocks(pair)) == sum(
            len(c.blocks) for c in pair
        )
        if gain > 0.0 and apart and len(chosen) + len(pair) <= actions and slack + saved >= 0.0:
            chosen += pair
            slack += saved
    return chosen


def undecided(
    changes: Sequence[Change],
    estimates: Mapping[str, Estimate],
    confidence: float,
    *,
    gap: float,
    actions: int,
    later: int,
) -> set[str]:
    """Keys of the changes on which a round's choice still hangs; empty when it is decided.

    The plan is made again in the world least favourable to it: what this round would do stays at its upper bound, everything
    else is at its lower one. What then is in the plan no more, and what takes its place, are worth more captions (after
    Chen et al. 2014, Combinatorial Pure Exploration: its rule CLUCB).
    """
    upper = {key: item.upper(confidence) for key, item in estimates.items()}
    plan = [c.key for c in _considered(changes, upper, gap=gap, actions=actions, later=later)]
    now = set(plan[:actions])
    world = {key: upper[key] if key in now else item.lower(confidence) for key, item in estimates.items()}
    rival = {c.key for c in _considered(changes, world, gap=gap, actions=actions, later=later)}
    if gap > 0.0 and now <= rival:
        return set()  # it goes in any case, now or later
    return (now - rival) | (rival - set(plan))


def _considered(
    changes: Sequence[Change], losses: Mapping[str, float], *, gap: float, actions: int, later: int
) -> list[Change]:
    """The plan of this round and the later ones while the budget is unmet, then what pays in this round."""
    if gap > 0.0:
        return plan_removals(changes, losses, gap=gap, most=actions + later)
    return paying_exchanges(changes, losses, slack=-gap, actions=actions)


def _disjoint(changes: Iterable[Change], taken: Iterable[Change]) -> list[Change]:
    """Those of `changes` that touch no block of a taken one."""
    gone = _blocks(taken)
    return [change for change in changes if not gone & change.blocks]


def _blocks(changes: Iterable[Change]) -> frozenset[str]:
    return frozenset[str]().union(*(change.blocks for change in changes))
