r"""`pytest tutorials/exercises` grades ex01_*.py to ex08_*.py; `--hint` adds hints.

`--solutions reference` grades the project's own functions.
"""

import importlib
import types

import pytest

from course import EXERCISES


def pytest_addoption(parser):
    parser.addoption("--solutions", default="mine", choices=("mine", "reference"),
                     help="what the graders judge: the functions of the ex*.py files, or the project's own")
    parser.addoption("--hint", action="store_true", help="show the hint of each exercise that fails")


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


@pytest.fixture(scope="module")
def solution(request):
    r"""The functions that test_exNN_topic.py grades: those of exNN_topic.py, or the project's own."""
    topic = request.module.__name__.removeprefix("test_")
    if request.config.getoption("--solutions") == "reference":
        from reference import SOLUTIONS
        return types.SimpleNamespace(**SOLUTIONS[topic])
    try:
        return importlib.import_module(topic)
    except Exception as error:  # a mistake at the top of the file
        message = f"{topic}.py cannot be imported: {type(error).__name__}: {error}"
    pytest.fail(message, pytrace=False)


def exercise_of(report):
    return EXERCISES.get(report.nodeid.partition("::test_")[2])


def pytest_terminal_summary(terminalreporter, config):
    passed, failed = ([exercise for report in terminalreporter.getreports(outcome) if (exercise := exercise_of(report))]
                      for outcome in ("passed", "failed"))
    if config.getoption("--hint"):
        terminalreporter.section("hints")
        for report in terminalreporter.getreports("failed"):
            if exercise_of(report):
                terminalreporter.write_line(f"{report.nodeid.partition('::test_')[2]}: {exercise_of(report).hint}")
    if passed or failed:
        terminalreporter.section("mark")
        for level in ("easy", "medium", "hard"):
            has, of = (sum(x.points for x in some if x.level == level) for some in (passed, passed + failed))
            terminalreporter.write_line(f"{level:8s}{has:4d} of {of:3d} points")
        terminalreporter.write_line(f"{'total':8s}{sum(x.points for x in passed):4d} of "
                                    f"{sum(x.points for x in passed + failed):3d} points: {len(passed)} of "
                                    f"{len(passed) + len(failed)} exercises")
