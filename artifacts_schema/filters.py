"""What `data.filters` says: `width >= 512`, `aspect <= 2`, `aesthetic_score > 5.5`, `LANGUAGE == en`."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OF_PICTURE = ("width", "height", "aspect")
"""Fields of the picture itself, in pixels; aspect is the longer side over the shorter one. All others are of the JSON."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_FILTER = re.compile(r"\s*([^<>=!\s](?:[^<>=!]*[^<>=!\s])?)\s*(>=|<=|==|!=|>|<)\s*((?!=).*\S)\s*")


@dataclass(frozen=True)
class Filter:
    """A comparison that a sample's field must satisfy; with a number unless `value` is none."""

    text: str
    field: str
    operation: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Raises ValueError that says what is expected."""
        found = _FILTER.fullmatch(text)
        if found is None:
            raise ValueError(
                f"a filter is a field, one of {', '.join(_COMPARE)}, and a value, such as 'width >= 512' or "
                f"'LANGUAGE == en'; found {text!r}"
            )
        made = cls(" ".join(text.split()), *found.groups())
        numeric = made.operation not in ("==", "!=") or made.field in OF_PICTURE
        if numeric and _number(made.value) is None:
            raise ValueError(f"the filter {text!r} compares with {made.value!r}, which is no number")
        return made

    def dropped(self, fields: Mapping[str, Any]) -> str:
        """Why a sample with these fields is left out, for the counts; "" for one that stays."""
        if self.field not in fields:
            return f"{self.text}: no such field"
        found, wanted = fields[self.field], _number(self.value)
        if wanted is None:
            kept = _COMPARE[self.operation](str(found), self.value)
        elif (number := _number(found)) is None:
            return f"{self.text}: not a number"
        else:
            kept = _COMPARE[self.operation](number, wanted)
        return "" if kept else self.text


def _number(value: Any) -> float | None:
    try:
        return float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        return None
