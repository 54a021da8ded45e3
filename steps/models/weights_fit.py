"""Whether weights are all those that a model's configuration asks for. Imports no torch.

What is missing a library fills with random numbers, and what is too much it leaves out: both draw pictures, of
another model than the one that was meant.
"""

from collections.abc import Iterable

_SHOWN = 3
# Buffers that a model computes itself; older libraries stored them.
_COMPUTED = ("position_ids", "attn_mask")


def misfit(
    *, missing: Iterable[str] = (), mismatched: Iterable[str] = (), unexpected: Iterable[str] = ()
) -> str:
    """What is wrong, with the number of tensors and the first names; empty when the weights fit."""
    kinds = {"missing": missing, "of another shape": mismatched, "unknown to config": unexpected}
    parts = []
    for kind, names in kinds.items():
        found = sorted(name for name in names if not name.endswith(_COMPUTED))
        if found:
            more = ", ..." if len(found) > _SHOWN else ""
            parts.append(f"{len(found)} tensors {kind} ({', '.join(found[:_SHOWN])}{more})")
    return ", ".join(parts)
