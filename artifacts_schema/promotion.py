"""What the gate decided about a run, and why."""

from typing import ClassVar, Literal

from artifacts_schema.base import Frozen, Interval, Record

Outcome = Literal["promoted", "kept", "unchanged"]


class GateCheck(Frozen):
    """One condition: what was wanted, what was found, in words. `passed` is None where there was nothing to check."""

    name: str
    passed: bool | None
    wanted: str
    found: str


class PromotionDecision(Record):
    """Left by the end of a run, or by the command, as `registry/decisions/<run>`.

    `champion` is the run that it was held against (None: there was none). `outcome` is "unchanged" where what ships is
    the champion's own. `distance` and `clip` are the run's minus the champion's on the validation protocol;
    None where nothing was compared. `note` says what happened besides, such as that another run was faster.
    """

    schema_name: ClassVar[str] = "snapfusion.promotion"
    schema_version: ClassVar[int] = 1

    stage: str = "registry"
    run: str
    champion: str | None
    outcome: Outcome
    checks: tuple[GateCheck, ...] = ()
    distance: Interval | None = None
    clip: Interval | None = None
    note: str = ""

    @property
    def failed(self) -> tuple[GateCheck, ...]:
        """The conditions that do not hold."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def summary(self) -> str:
        """One sentence."""
        over = f"run {self.champion}" if self.champion else "no champion"
        if self.outcome == "promoted":
            return f"promoted: run {self.run} is the champion, in the place of {over}"
        if self.outcome == "unchanged":
            return f"unchanged: run {self.run} made what champion {over} is made of, which stays"
        why = self.note or "; ".join(f"{check.name}: {check.found}" for check in self.failed)
        stays = f"{over} stays champion" if self.champion else "there still is no champion"
        return f"kept: {stays}, because of {why}" if why else f"kept: {stays}"
