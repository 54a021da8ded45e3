"""The latency tables that come with the project, `assets/latency_tables/`: where they are, and what each must say."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from artifacts_schema.latency import LatencyTable
from artifacts_schema.published import PublishedLatencies
from steps.files.errors import LatencyTableError

FOLDER = Path("assets/latency_tables")
_PROVENANCE = ("created_at", "device", "versions")


def find_table(named: str, roots: Sequence[Path]) -> Path:
    """The file that `latency_profile.table` names, below the first of the `roots` that has it; else as it stands."""
    places = [root / named for root in roots]
    return next((place for place in places if place.is_file()), Path(named))


def check_contributed(path: Path) -> LatencyTable | PublishedLatencies:
    """Read a file of the folder. Raises LatencyTableError for one that lacks its provenance or is neither kind."""
    try:
        text = path.read_text(encoding="utf-8")
        if json.loads(text).get("schema") == "snapfusion.published_latencies":
            return PublishedLatencies.model_validate_json(text)
        table = LatencyTable.from_json(text)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise LatencyTableError(
            f"{path} is neither a latency table nor one of published latencies: {error}"
        ) from error
    missing = [name for name in _PROVENANCE if not getattr(table.provenance, name, None)]
    if missing:
        raise LatencyTableError(
            f"{path} lacks provenance ({', '.join(missing)}): expected when it was made, on what and with which versions"
        )
    if table.provenance and (table.provenance.host or table.provenance.run_id):
        raise LatencyTableError(f"{path} names a host or a run; leave out what tells of your machines")
    if table.backend == "macs":
        raise LatencyTableError(
            f"{path} holds MACs, which every machine counts: use backend = 'macs' without a table"
        )
    return table
