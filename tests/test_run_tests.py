"""tools/run_tests.py: how cases are counted from what ctest, cmocka and pytest print."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("run_tests", ROOT / "tools" / "run_tests.py")
run_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_tests)

CMOCKA_GOOD = "[==========] 12 test(s) run.\n[  PASSED  ] 12 test(s).\n"
CMOCKA_BAD = ("[  PASSED  ] 1 test(s).\n[  SKIPPED ] 1 test(s), listed below:\n[  SKIPPED ] c\n\n 1 SKIPPED TEST(S)\n"
              "[  FAILED  ] 2 test(s), listed below:\n[  FAILED  ] a\n[  FAILED  ] b\n\n 2 FAILED TEST(S)\n")

CASES = [
    ("run", CMOCKA_GOOD, (12, 0, 0)),
    ("run", CMOCKA_GOOD + CMOCKA_GOOD, (24, 0, 0)),
    ("fail", CMOCKA_BAD, (1, 2, 1)),
    ("run", "....\n4 passed in 0.31s\n", (4, 0, 0)),
    ("run", "SKIPPED [1] x: why\n7 passed, 3 skipped in 6.37s\n", (7, 0, 3)),
    ("run", "1 skipped in 0.01s\n", (0, 0, 1)),
    ("run", "75 passed, 2 warnings in 61.20s (0:01:01)\n", (75, 0, 0)),
    ("fail", "4 failed, 71 passed in 4.22s\n", (71, 4, 0)),
    ("fail", "1 passed, 1 error in 0.50s\n", (1, 1, 0)),
    ("run", "3 passed, 1 xfailed in 0.50s\n", (3, 0, 1)),
    ("run", "any other program\n", (1, 0, 0)),
    ("fail", "any other program\n", (0, 1, 0)),
    ("fail", CMOCKA_GOOD, (12, 1, 0)),  # It crashed at exit, or the sanitizer found a leak.
    ("run", CMOCKA_BAD, (1, 2, 1)),  # Failures printed and yet exit status 0.
    ("notrun", "", (0, 1, 0)),
    ("disabled", "", (0, 0, 1)),
]


@pytest.mark.parametrize("status, output, expected", CASES)
def test_cases_are_counted(status, output, expected):
    counts = run_tests.count_cases(status, output)
    assert (counts.passed, counts.failed, counts.skipped) == expected


def test_report_is_summed_and_a_missing_one_fails(tmp_path):
    report = tmp_path / "ctest.xml"
    assert run_tests.count_report(report).failed == 1
    report.write_text('<testsuite><testcase name="a" status="run"><system-out>2 passed in 1.00s</system-out></testcase>'
                      '<testcase name="b" status="fail"><failure/><system-out>boom</system-out></testcase></testsuite>')
    assert str(run_tests.count_report(report)) == "2 passed, 1 failed, 0 skipped"
    report.write_text("<testsuite>")
    assert run_tests.count_report(report).failed == 1
