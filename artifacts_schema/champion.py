"""The champion's history: which run is the one to use, since when, and why."""

from typing import ClassVar, Literal

from artifacts_schema.base import Frozen, Record


class ChampionEvent(Frozen):
    """One change of the champion: `run` took the place of `replaced` (None: there was none).

    `id` is unique, so that two events never read alike; `at` is UTC, ISO 8601; `by` is who ran the command or flow.
    """

    id: str
    event: Literal["promoted", "rolled_back"]
    run: str
    replaced: str | None
    at: str
    by: str = ""
    reason: str = ""


class ChampionHistory(Record):
    """Every change of the champion, oldest first. Only ever appended to; the last event's run is the champion."""

    schema_name: ClassVar[str] = "snapfusion.champion"
    schema_version: ClassVar[int] = 1

    stage: str = "registry"
    events: tuple[ChampionEvent, ...] = ()

    @property
    def champion(self) -> str | None:
        """The run to use; None before the first promotion."""
        return self.events[-1].run if self.events else None

    @property
    def before(self) -> str | None:
        """The run that a rollback returns to: the champion before the present one came, as though later events were undone.

        Each rollback takes the present champion away for good, so that rolling back twice goes two champions back.
        """
        standing: list[str] = []
        for event in self.events:
            if event.event == "rolled_back" and event.run in standing:
                del standing[standing.index(event.run) + 1 :]
            else:
                standing.append(event.run)
        return standing[-2] if len(standing) > 1 else None
