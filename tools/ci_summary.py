"""Add up the JUnit files of a CI run: a line for each tier, then `N passed, N failed, N skipped`.

Usage: python ci_summary.py [--failed-steps N] REPORT.xml...

Needs nothing but the standard library: it must run when set-up failed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def main(argv: list[str]) -> int:
    """Print the sums. N steps that failed with no failed test to show for it count as N failed."""
    failed_steps = 0
    if argv[:1] == ["--failed-steps"]:
        failed_steps, argv = int(argv[1]), argv[2:]
    passed = failed = skipped = 0
    for path in map(Path, argv):
        if not path.exists():
            print(f"{path.stem:>5}: did not run")
            continue
        for suite in ET.parse(path).getroot().iter("testsuite"):
            tests, bad, left_out = (
                sum(int(suite.get(key, 0)) for key in keys)
                for keys in (["tests"], ["failures", "errors"], ["skipped"])
            )
            good = tests - bad - left_out
            minutes = float(suite.get("time", 0)) / 60
            print(f"{path.stem:>5}: {good} passed, {bad} failed, {left_out} skipped "
                  f"in {minutes:.1f} minutes")
            passed, failed, skipped = passed + good, failed + bad, skipped + left_out
    if not failed:
        failed = failed_steps
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
