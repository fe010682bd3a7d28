r"""The README and the pages under docs/ name things that exist, and the recipe for an objective works as printed."""

import importlib
import json
import os
import re
import subprocess
import sys

from conftest import ROOT

from plumbing import settings as choices

README = (ROOT / "README.md").read_text()
FORMULAS = (ROOT / "docs" / "formulas.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = (ROOT, ROOT / "tutorials" / "exercises", ROOT / "integrations")  # where a bare file name may lie
OTHER_FLAGS = {"help", "nproc_per_node"}  # of argparse and of torchrun


def test_every_function_and_test_of_the_map_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", FORMULAS))
    assert len(named) >= 45
    assert not [name for name in named if f"def {name}(" not in tests]
    functions = {(module, name) for module, name in re.findall(r"`(\w+)\.(\w+)`", FORMULAS) if name != "py"}
    assert len(functions) >= 35
    for module, name in functions:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_every_loss_and_advantage_is_on_the_map():
    for module in ("pmd_mean", "rpg_losses", "baselines"):
        source = (ROOT / f"{module}.py").read_text()
        for name in re.findall(r"^def (\w+_(?:loss|advantages))\(", source, re.MULTILINE):
            assert f"`{module}.{name}`" in FORMULAS, (module, name)


def test_every_file_and_flag_that_is_named_exists():
    programs = "\n".join(path.read_text() for folder in ("studies", "benchmarks", "integrations", "tutorials/exercises")
                         for path in (ROOT / folder).glob("*.py"))
    flags = {name.replace("_", "-") for name in choices.Settings.__dataclass_fields__} | OTHER_FLAGS
    flags |= set(re.findall(r"add_argument\(\"--([a-z][a-z-]+)\"", programs))
    for page in PAGES:
        text = page.read_text()
        paths = re.findall(r"`(\w[\w./-]*(?:\.(?:py|ini|md|txt)|/))`", text)
        paths += re.findall(r"(?:python|pytest) (\w[\w./-]*/[\w./-]+)", text)
        for path in set(paths) - {"my_objective.py"}:  # which the reader is to write
            assert any((place / path).exists() for place in PLACES), (page.name, path)
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / link).exists(), (page.name, link)
        for flag in set(re.findall(r"--([a-z][a-z_-]+)", text)):
            assert flag in flags, (page.name, flag)


def test_every_concept_file_and_folder_is_in_the_map_of_files():
    files = [path.name for path in ROOT.glob("*.py")]
    folders = [f"{path.parent.relative_to(ROOT).parts[0]}/" for path in ROOT.glob("*/*.py")]
    for name in {*files, *folders}:
        assert f"`{name}`" in README, name


def test_the_two_commands_stand_as_they_are():
    assert "    pip install -r requirements.txt && python train.py --objective pmd_mean\n" in README
    assert "    pip install -r requirements.txt && pytest\n" in README
    assert (ROOT / ".ci" / "run").read_text().count("pip install -q -r requirements.txt && pytest") == 1


def test_the_recipe_for_an_objective_works(tmp_path):
    r"""The README's file, as printed, with a smaller run: flags that are given twice take the last value."""
    (recipe,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(recipe.splitlines()) <= 15 and '"--steps", "20"' in recipe
    (tmp_path / "my_objective.py").write_text(recipe)
    small = ["--steps", "2", "--prompts-per-step", "4", "--group-size", "4", "--minibatch-size", "8",
             "--max-new-tokens", "40", "--eval-every", "0", "--save-every", "0", "--device", "cpu", "--seed", "6",
             "--train-data", str(ROOT / "tiny" / "test.jsonl"), "--out", str(tmp_path / "run")]
    program = ("import runpy, train; main = train.main; "
               f"train.main = lambda flags: main(flags + {small!r}); "
               f"runpy.run_path({str(tmp_path / 'my_objective.py')!r})")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=300, stdout=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["objective"] == "mine"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["grad_norm"] > 0 and row["skipped_updates"] == 0 for row in rows[1:])
    assert any(row["kl_to_old"] > 0 for row in rows[1:])
