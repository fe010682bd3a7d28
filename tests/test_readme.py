r"""The README's map and commands name things that exist."""

import importlib
import re

from conftest import ROOT

from plumbing import settings as choices

README = (ROOT / "README.md").read_text()
MAP = README.split("## From the papers to the code")[1].split("\n## ")[0]


def test_every_function_and_test_of_the_map_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", MAP))
    assert len(named) >= 25
    assert not [name for name in named if f"def {name}(" not in tests]
    functions = set(re.findall(r"`(\w+)\.(\w+)`", MAP)) - {("train", "py")}
    assert len(functions) >= 15
    for module, name in functions:
        assert name.endswith("_") or hasattr(importlib.import_module(module), name), (module, name)


def test_every_file_and_flag_that_is_named_exists():
    for path in re.findall(r"`([\w/]+\.(?:py|ini|md|txt)|\w+/)`", README):
        places = (ROOT / path, ROOT / "tutorials" / "exercises" / path)
        assert any(place.exists() for place in places) or path == "file.py", path
    for flag in set(re.findall(r"--([a-z][a-z-]+)", README)) - {"nproc", "seeds", "objectives", "nproc_per_node"}:
        assert flag.replace("-", "_") in choices.Settings.__dataclass_fields__ or flag in ("out", "help"), flag


def test_the_two_commands_stand_as_they_are():
    assert "    pip install -r requirements.txt && python train.py --objective pmd_mean\n" in README
    assert "    pip install -r requirements.txt && pytest\n" in README
    assert (ROOT / ".ci" / "run").read_text().count("pip install -q -r requirements.txt && pytest") == 1
