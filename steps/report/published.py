"""Names under which a run's comparisons are published, one place for all of them."""

from collections.abc import Collection

from artifacts_schema.evaluation import VariantComparison
from artifacts_schema.parts import ships
from steps.evaluation.variants import COMPRESSED

_NAMES = {
    ("base_50", COMPRESSED): "compressed_vs_base50",
    ("base_50", "student_4_small_decoder"): "student4_vs_base50",
    ("base_4_dpm", "student_4_small_decoder"): "student4_vs_dpm4",
    ("base_50", "student_2_small_decoder"): "student2_vs_base50",
    ("base_2_dpm", "student_2_small_decoder"): "student2_vs_dpm2",
}
# By reference: for a run with student_8, and for any other.
_OF_WHAT_SHIPS = {
    "base_50": ("student8_vs_base50", "shipped_vs_base50"),
    "base_8_dpm": ("student8_vs_dpm8", ""),
}


def published_name(item: VariantComparison, skip: Collection[str]) -> str:
    """The name of a comparison's ratios; empty where they have none."""
    if item.other == ships(skip):
        return _OF_WHAT_SHIPS.get(item.reference, ("", ""))["student_8" in skip]
    return _NAMES.get((item.reference, item.other), "")
