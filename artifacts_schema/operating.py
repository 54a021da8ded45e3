"""Configuration of what happens around a run: who becomes champion, when the flow runs by itself, who is told.

Nothing here changes a stage's result, and no stage reads it.
"""

import re
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from artifacts_schema.base import Frozen
from artifacts_schema.ranges import Count, NotNegative, Positive, setting

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class PromotionConfig(Frozen):
    """What a run must show to become champion (docs/adr/0029-champion.md).

    Quality is that of the student with the small decoder, the thing that ships, against the champion's, paired, on the
    validation protocol: neither the kernel distance nor the CLIP score may be worse with its whole 95 % interval. A margin
    asks for more: that the interval's bad end is no worse than that (0.02: at most 0.02 worse, with 97.5 % confidence).
    """

    enabled: bool = setting(False, "promote at the end of a run; the command promotes in any case")
    distance_margin: NotNegative | None = setting(
        None, "in kernel distance, by which the interval's bad end may be worse; unset: see above"
    )
    clip_margin: NotNegative | None = setting(
        None, "in CLIP score, by which the interval's bad end may be worse; unset: see above"
    )
    latency_budget: Share | None = setting(
        None, "as a share of the base UNet's; unset: architecture_evolution.latency_budget"
    )
    max_bundle_mib: Positive | None = setting(None, "largest bundle; unset: any size", unit="MiB")
    require_parity: bool = setting(True, "every component was compared with its torch model")
    require_licence: bool = setting(True, "a verdict on quality needs instruments that are licensed for it")
    allow_smoke: bool = setting(False, "smoke runs and those with too few pictures or iterations")


class ScheduleConfig(Frozen):
    """When a deployed flow runs by itself (Argo Workflows, Step Functions); a local run ignores it. docs/operate.md"""

    cron: str | None = setting(
        None, "five fields (Argo Workflows) or six (Step Functions), in UTC unless timezone is given"
    )
    timezone: str | None = setting(None, "such as Europe/Berlin; Argo Workflows only")
    event: str | None = setting(None, "of new data, that starts a run; Argo Events only")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cron is None and self.timezone is not None:
            raise ValueError("timezone needs cron: a schedule without cron never starts")
        if self.cron is not None and not re.fullmatch(r"\S+(\s+\S+){4,5}", self.cron.strip()):
            raise ValueError(
                f"cron must be five fields, as '0 3 * * 1', or the six of Step Functions, found {self.cron!r}"
            )
        if self.timezone is not None:
            try:
                ZoneInfo(self.timezone)
            except (ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
                raise ValueError(f"timezone is unknown here: {error}") from error
            except KeyError:
                raise ValueError(
                    f"timezone {self.timezone!r} is unknown; name one as Europe/Berlin"
                ) from None
        return self


Event = Literal["failed", "promoted", "kept", "unchanged", "rolled_back"]
EVENTS: tuple[Event, ...] = get_args(Event)


class NotifyConfig(Frozen):
    """A webhook that is told how runs end; its body is described in docs/operate.md. An address that is a secret goes
    into the environment variable SNAPFUSION_WEBHOOK, which comes first: the configuration is part of every report.
    """

    webhook: str | None = setting(None, "address that is told; a secret one goes into SNAPFUSION_WEBHOOK")
    events: tuple[Event, ...] = setting(EVENTS, "of which it is told")
    timeout_s: Positive = setting(5.0, "of one attempt", unit="s")
    attempts: Count = setting(3, "of one message")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.webhook is not None and not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", self.webhook):
            raise ValueError("webhook must be http(s)://host[:port][/path], without user and password")
        return self
