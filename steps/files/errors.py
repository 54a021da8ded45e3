"""Every error the pipeline raises on purpose.

SnapFusionError
├── ConfigError           a configuration key or value is refused
├── BaseModelError        the base model's folder is not usable
├── ShortOfMemoryError    a stage needs more memory than there is; the message names a setting
├── DataError             shards, pictures or captions are not usable
├── StoreError            the store cannot read, write or verify an object
│   ├── DamagedError      bytes are not those that were stored; they are never used
│   └── DiskFullError     no space left; nothing was left under a final name
├── LatencyTableError     a latency table does not belong to this model, batch or provenance
├── ArchitectureError     an architecture breaks the UNet's skip connections
├── BudgetError           no allowed removal reaches the latency budget
├── TrainingError
│   ├── NonFiniteLossError  the loss became NaN or infinite
│   ├── CheckpointError     no checkpoint of this training can be read
│   └── RankError           one of the processes that train together is gone
├── EvaluationError       records of unlike protocols, or a metric that cannot be computed
├── ExportError           a component cannot be exported correctly
├── PromotionError        a run cannot become champion, or a champion cannot be used
└── Interrupted           SIGTERM, SIGINT or SIGHUP arrived; a checkpoint was written first

A message says what was expected, what was found, and what to do next.
"""


class SnapFusionError(Exception):
    """Base of all errors the pipeline raises on purpose."""


class ConfigError(SnapFusionError):
    """A configuration key or value is refused."""


class BaseModelError(SnapFusionError):
    """The base model's folder is not usable."""


class ShortOfMemoryError(SnapFusionError):
    """A stage needs more memory than there is; the message names a setting that takes less."""


class DataError(SnapFusionError):
    """Shards, pictures or captions are not usable."""


class StoreError(SnapFusionError):
    """The store cannot read, write or verify an object."""


class DamagedError(StoreError):
    """Bytes are not those that were stored; they are never used."""


class DiskFullError(StoreError):
    """No space left on the device; nothing was left under a final name."""


class LatencyTableError(SnapFusionError):
    """A latency table does not belong to this model, batch or provenance."""


class ArchitectureError(SnapFusionError):
    """An architecture breaks the UNet's skip connections."""


class BudgetError(SnapFusionError):
    """No allowed removal reaches the latency budget."""


class TrainingError(SnapFusionError):
    """A training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(TrainingError):
    """No checkpoint of this training can be read."""


class RankError(TrainingError):
    """One of the processes that train together ended before the training."""


class EvaluationError(SnapFusionError):
    """Records of unlike protocols, or a metric that cannot be computed."""


class ExportError(SnapFusionError):
    """A component cannot be exported correctly."""


class PromotionError(SnapFusionError):
    """A run cannot become champion, or a champion cannot be used."""


class Interrupted(SnapFusionError):
    """SIGTERM, SIGINT or SIGHUP arrived; a checkpoint was written first. The process must end with a non-zero status."""
