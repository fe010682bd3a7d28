r"""The exercises grade what they should, and the project's own tests catch every bug of the zoo."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tutorials" / "exercises"
sys.path.append(str(FOLDER))

import bug_zoo  # noqa: E402
import check_graders  # noqa: E402
from wrong_answers import WRONG  # noqa: E402


# --- graders ---

@pytest.mark.parametrize("topic, name", check_graders.EXERCISES)
def test_the_projects_own_function_passes(topic, name):
    assert check_graders.verdict(topic, name, check_graders.SOLUTIONS[topic][name]) is None


@pytest.mark.parametrize("topic, name", check_graders.EXERCISES)
def test_the_empty_exercise_says_what_is_missing_and_where_to_read(topic, name):
    message = check_graders.verdict(topic, name, check_graders.empty(topic, name))
    assert message.startswith(f"{name}: missing: ") and "Read tutorial" in message and "\n" not in message


@pytest.mark.parametrize("name, message, wrong", [(name, *entry) for name in WRONG for entry in WRONG[name]])
def test_a_common_wrong_answer_is_named(name, message, wrong):
    said = check_graders.verdict(check_graders.TOPIC[name], name, wrong)
    assert said is not None and said.startswith(f"{name}: {message}")


@pytest.mark.parametrize("name, answer, says", check_graders.GENERIC)
def test_other_mistakes_are_described_by_their_numbers(name, answer, says):
    assert says in check_graders.verdict(check_graders.TOPIC[name], name, answer)


def test_every_exercise_has_a_grader_and_wrong_answers():
    names = [name for _, name in check_graders.EXERCISES]
    assert 25 <= len(names) == len(set(names)) == len(WRONG) and all(len(WRONG[name]) >= 2 for name in names)
    graded = {line.split("(")[0].removeprefix("def test_") for path in FOLDER.glob("test_ex*.py")
              for line in path.read_text().splitlines() if line.startswith("def test_")}
    assert graded == set(names)


def pytest_run(*arguments):
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=ROOT,
                          capture_output=True, text=True)


def test_the_command_fails_with_one_short_message_each():
    result = pytest_run("tutorials/exercises/test_ex03_policy_gradients.py")
    assert result.returncode == 1 and "6 failed" in result.stdout and "error" not in result.stdout.casefold()
    assert len(result.stdout.splitlines()) < 30


def test_the_command_passes_with_the_reference():
    result = pytest_run("tutorials/exercises/test_ex03_policy_gradients.py", "--solutions", "reference")
    assert result.returncode == 0 and "6 passed" in result.stdout


# --- the bug zoo ---

@functools.cache
def tiny():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = ROOT / "tiny" / "model"
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def arguments_stay_as_they_are(module):
    r"""No advantages change the rewards that they are given (they are counted afterwards)."""
    rewards = torch.tensor([1.0, 0.5, 0.5, 2.0])
    module.pmd_mean_advantages(rewards, 4)
    assert rewards.tolist() == [1.0, 0.5, 0.5, 2.0]


CHECKS = {  # for the bugs that are no rows of test_mutations.py: a test of the project that catches them
    "z01": lambda t: t.test_place(*t.PLACES["last hashes"]),
    "z02": lambda t: t.test_unequal("-7", "7"),
    "z03": lambda t: t.test_unequal("cat", "category"),
    "z04": lambda t: t.test_no_answer("#### 18 or 20"),
    "z05": lambda t: t.test_a_bonus_as_large_as_being_right_is_refused(1.0),
    "z06": lambda t: t.test_pad_token_that_is_eos_still_counts_the_eos(tiny()),
    "z07": lambda t: t.test_mask_counts_up_to_and_including_the_first_eos(tiny()),
    "z08": lambda t: t.test_mask_counts_up_to_and_including_the_first_eos(tiny()),
    "z09": lambda t: t.test_positions_by_hand(),
    "z10": lambda t: t.test_log_probs_are_those_of_a_plain_forward_pass(tiny()),
    "z11": lambda t: t.test_chat_template_is_used(tiny()[1]),
    "z15": lambda t: arguments_stay_as_they_are(sys.modules["pmd_mean"]),
    "z32": lambda t: t.test_each_epoch_visits_every_problem_once(),
    "z33": lambda t: t.test_microbatches_add_up_to_the_full_batch(tiny()),
}


@pytest.mark.parametrize("bug", bug_zoo.BUGS, ids=lambda bug: bug.id)
def test_the_projects_tests_catch_every_bug_of_the_zoo(bug, tmp_path, monkeypatch):
    check = bug.check or CHECKS[bug.id]
    bug_zoo.TABLE.test_the_bug_is_caught(bug.description, bug.file, bug.function, bug.old, bug.new, check, tmp_path,
                                         monkeypatch)


def test_the_zoo_is_large_and_not_only_easy():
    assert len(bug_zoo.BUGS) == len({bug.id for bug in bug_zoo.BUGS}) >= 20
    assert len({bug.pitfall for bug in bug_zoo.BUGS} - {0}) >= 15
    assert {bug.difficulty for bug in bug_zoo.BUGS} == {"easy", "medium", "hard"}


def test_the_zoo_tells_what_is_caught_and_what_lives(tmp_path, capsys):
    path = tmp_path / "my_tests.py"
    path.write_text("import torch\nfrom baselines import grpo_loss\nfrom pmd_mean import pmd_loss\n\n\n"
                    "def test_clip():\n    w = torch.tensor([2.0]).log()\n"
                    "    assert abs(grpo_loss(w, 0 * w, torch.tensor([1.0])) + 1.2) < 1e-6\n\n\n"
                    "def test_pmd():\n    s, m = torch.tensor([[0.2]]), torch.ones(1, 1)\n"
                    "    assert abs(pmd_loss(s, 0 * s, torch.tensor([0.5]), m, 0.1) - 1.152) < 1e-6\n")
    result = subprocess.run([sys.executable, str(FOLDER / "bug_zoo.py"), path.name], capture_output=True, text=True,
                            cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("z")}
    assert len(lines) == len(bug_zoo.BUGS)
    assert "caught by test_clip" in lines["z19"] and "caught by test_pmd" in lines["z18"]
    assert all("LIVES" in lines[bug] for bug in ("z01", "z12", "z24", "z29"))
    assert "min and max swapped" in result.stdout and "k3 in the other direction" not in result.stdout
    assert "Your tests import none of: reward_math, rollout" in result.stdout
    with pytest.raises(SystemExit) as end:
        bug_zoo.main([str(path), "--reveal", "--bug", "z24"])
    revealed = capsys.readouterr().out
    assert end.value.code == 1 and "k3 in the other direction" in revealed and "0 of 1 caught" in revealed


@pytest.mark.parametrize("text, says", [
    (None, "no test file at"),
    ("def test_x():\n    assert 1 == 2\n", "fails on the unbroken code (test_x"),
    ("import no_such_thing\n", "fails on the unbroken code (import"),
    ("x = 1\n", "has no test that passes"),
    (f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport pmd_mean\n\n\ndef test_x():\n    pass\n",
     "leave sys.path alone"),
])
def test_the_zoo_refuses_a_file_that_cannot_judge(tmp_path, capsys, text, says):
    path = tmp_path / "my_tests.py"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit) as end:
        bug_zoo.main([str(path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and says in said and len(said.splitlines()) == 1
