"""Asks the advisory service about every installed package: `python -m infra.audit`.

Fails when an advisory is found. Where the service cannot be reached it says so and passes: a machine without network
must be able to run the checks.
"""

import json
import subprocess
import sys
from typing import Any

_LIMIT_S = 120


def findings(output: str) -> list[str] | None:
    """One line for each advisory in pip-audit's JSON, or None when it is no JSON: the audit did not take place."""
    try:
        report: dict[str, Any] = json.loads(output)
    except json.JSONDecodeError:
        return None
    return [
        f"{package['name']} {package['version']}: {advisory['id']}, fixed in "
        f"{', '.join(advisory['fix_versions']) or 'no version yet'}"
        for package in report["dependencies"]
        for advisory in package.get("vulns", [])
    ]


def main() -> int:
    """Run pip-audit on this environment."""
    command = [
        sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable",
        "--vulnerability-service", "osv", "--timeout", "10",
    ]  # fmt: skip
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        output = result.stdout
    except subprocess.TimeoutExpired:
        output = ""
    found = findings(output)
    if found is None:
        print("dependency audit: not done, the advisory service cannot be reached from here")
        return 0
    print("\n".join(found) or "dependency audit: no known advisory")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
