"""Numbers of a configuration and their ranges: one that was mistyped is told of before anything runs."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

MOST = 10**9
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=MOST)]
NotNegative = Annotated[float, Field(ge=0.0, le=MOST)]
Decibel = Annotated[float, Field(ge=0.0, le=200.0)]  # float32 itself has some 140
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
GuidanceScale = Annotated[float, Field(ge=1.0, le=100.0)]  # 1: none
Weight = Annotated[float, Field(ge=0.0, le=100.0)]  # of a term in a loss
Device = Literal["auto", "cpu", "cuda"]

Value = TypeVar("Value")


def setting(default: Value, meaning: str, *, unit: str = "", origin: str = "ours", **limits: Any) -> Value:
    """A key of a configuration, with what its page and an editor say of it.

    `origin` is the default's: "P" is the SnapFusion paper (arXiv 2306.00980v3), "ours" means that the paper gives none.
    """
    described = f"{meaning} [{unit}]" if unit else meaning
    found: Value = Field(
        default, description=described, json_schema_extra={"unit": unit, "origin": origin}, **limits
    )
    return found
