"""Asks the advisory service about every installed package: `python -m infra.audit`.

Fails when an advisory is found, and when the audit itself fails. Where the service cannot be reached it says so and
passes: a machine without network must be able to run the checks.
"""

import json
import re
import subprocess
import sys
from typing import Any

_LIMIT_S = 120
COMMAND = [
    sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable",
    "--vulnerability-service", "osv", "--timeout", "10",
]  # fmt: skip
# How pip-audit's last lines say that nobody answered: its own words, or the error that it does not catch.
_NO_NETWORK = re.compile(
    r"^(requests\.exceptions\.(ConnectionError|ProxyError|ConnectTimeout|ReadTimeout):|.*Could not connect to )",
    re.MULTILINE,
)


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
    try:
        result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"dependency audit: failed, pip-audit did not end within {_LIMIT_S} s")
        return 1
    found = findings(result.stdout)
    if found is None:
        said = "\n".join(result.stderr.splitlines()[-5:])
        if result.returncode and _NO_NETWORK.search(said):
            print(
                "dependency audit: not checked: no network, the advisory service cannot be reached from here"
            )
            return 0
        print(f"dependency audit: failed, pip-audit ended with status {result.returncode}:\n{said}")
        return 1
    print("\n".join(found) or "dependency audit: no known advisory")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
