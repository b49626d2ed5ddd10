#!/usr/bin/env python3
"""run_tests.py: builds and runs every suite (release, asan, tsan, fuzz, aarch64) and ends with one line of totals.

A CTest test is one program or one pytest file. Its cases are counted from its output where cmocka or pytest says how
many there were, so that the totals are cases; any other program counts as one.
"""

import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("release", "asan", "tsan", "fuzz", "aarch64")
MODELS = ("smollm2-135m", "gemma3-270m")

CMOCKA = re.compile(r"^\[  (PASSED|FAILED|SKIPPED)\s+\] (\d+) test\(s\)", re.M)
PYTEST = re.compile(r"^(?:\d+ \w+, )*\d+ \w+.* in [\d.]+s.*$", re.M)
PYTEST_PART = re.compile(r"(\d+) (passed|failed|skipped|xfailed|xpassed|errors?)\b")


@dataclass
class Totals:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def count_cases(status, output):
    """Cases of one CTest test. `status` is ctest's verdict (run, fail, notrun, disabled) and wins over the output."""
    if status in ("notrun", "disabled"):
        return Totals(failed=1) if status == "notrun" else Totals(skipped=1)
    counts = Totals()
    for kind, number in CMOCKA.findall(output):
        setattr(counts, kind.lower(), getattr(counts, kind.lower()) + int(number))
    summary = PYTEST.findall(output)
    if summary:
        for number, kind in PYTEST_PART.findall(summary[-1]):
            field = {"passed": "passed", "skipped": "skipped", "xfailed": "skipped"}.get(kind, "failed")
            setattr(counts, field, getattr(counts, field) + int(number))
    if status == "fail":
        counts.failed = max(counts.failed, 1)
    elif counts.failed:  # It printed failures and still said 0: believe the failures.
        pass
    elif counts.passed + counts.skipped == 0:
        counts.passed = 1
    return counts


def count_report(path):
    """Totals of a junit file written by ctest; a missing or empty one is a failure."""
    totals = Totals()
    try:
        cases = xml.parse(path).getroot().iter("testcase")
    except (OSError, xml.ParseError):
        return Totals(failed=1)
    for case in cases:
        totals.add(count_cases(case.get("status"), case.findtext("system-out") or ""))
    return totals


def run(*command):
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0


def run_suite(name):
    """Configures, builds and tests one preset. A build that fails is one failure."""
    report = ROOT / "build" / name / "ctest.xml"
    report.unlink(missing_ok=True)
    built = run("cmake", "--preset", name) and run("cmake", "--build", "--preset", name, "--target", "all", "checks")
    if not built:
        print(f"FAILED: preset {name} does not build")
        return Totals(failed=1)
    run("ctest", "--preset", name, "-j", str(len(os.sched_getaffinity(0))), "--no-tests=ignore",
        "--output-junit", str(report), "--test-output-size-passed", "1000000", "--test-output-size-failed", "1000000")
    return count_report(report)


def fetch_models():
    """The tests of real models skip without them; CI must not miss that."""
    if run(str(ROOT / "tools" / "fetch-model"), *MODELS):
        return Totals()
    print("The models could not be fetched: the tests that need them are skipped.")
    return Totals(failed=1) if os.environ.get("CI") else Totals(skipped=1)


def main():
    totals, lines = fetch_models(), []
    for name in SUITES:
        start = time.monotonic()
        counts = run_suite(name)
        totals.add(counts)
        lines.append(f"{name + ':':9}{counts} ({time.monotonic() - start:.0f} s)")
    print("\n" + "\n".join(lines) + "\n")
    print(totals, flush=True)
    return 0 if totals.failed == 0 and totals.passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
