r"""`pytest tutorials/exercises` grades ex01_*.py to ex07_*.py; `--solutions reference` grades the project's own."""

import importlib
import types

import pytest


def pytest_addoption(parser):
    parser.addoption("--solutions", default="mine", choices=("mine", "reference"),
                     help="what the graders judge: the functions of the ex*.py files, or the project's own")


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
