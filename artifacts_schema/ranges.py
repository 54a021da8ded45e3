"""Numbers of a configuration and their ranges: one that was mistyped is told of before anything runs."""

from typing import Annotated, Literal

from pydantic import Field

_MOST = 10**9
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=_MOST)]
NotNegative = Annotated[float, Field(ge=0.0, le=_MOST)]
Decibel = Annotated[float, Field(ge=0.0, le=200.0)]  # float32 itself has some 140
Count = Annotated[int, Field(ge=1, le=_MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=_MOST)]
GuidanceScale = Annotated[float, Field(ge=1.0, le=100.0)]  # 1: none
Weight = Annotated[float, Field(ge=0.0, le=100.0)]  # of a term in a loss
Device = Literal["auto", "cpu", "cuda"]
