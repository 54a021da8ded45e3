"""A verdict needs its instrument's licence."""

from artifacts_schema.licences import Licence, licence_of


def test_a_number_of_quality_needs_the_licence_of_its_instrument() -> None:
    given = Licence(instrument="clip_score", licensed=True, reason="ordered what is known")
    found = licence_of({"clip_score": given}, "student8_vs_base50.clip_difference")
    assert found == given
    for metric, instrument in (
        ("student8_vs_base50.distance_ratio", "kernel_distance"),
        ("student8_vs_base50.distance_difference", "kernel_distance"),
        ("base.retrieval_top1", "retrieval_top1"),
    ):
        missing = licence_of({"clip_score": given}, metric)
        assert missing is not None
        assert (missing.instrument, missing.licensed) == (instrument, False)


def test_a_size_needs_none() -> None:
    assert licence_of({}, "unet.param_ratio") is None
