r"""The exercises grade what they should, and the project's own tests catch every bug of the zoo."""

import collections
import functools
import inspect
import itertools
import json
import re
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
import course  # noqa: E402
import grading  # noqa: E402
import model_answers  # noqa: E402
from mutants import mutants  # noqa: E402
from unseen_mistakes import FRESH, SECOND, UNSEEN  # noqa: E402
from wrong_answers import WRONG  # noqa: E402


# --- graders ---

@pytest.mark.parametrize("topic, name", check_graders.EXERCISES)
def test_the_projects_own_function_and_the_model_answer_pass(topic, name):
    for answer in {check_graders.SOLUTIONS[topic][name], getattr(model_answers, name)}:
        assert check_graders.verdict(topic, name, answer) is None


@pytest.mark.parametrize("topic, name", check_graders.EXERCISES)
def test_the_empty_exercise_points_to_a_section_of_a_tutorial(topic, name):
    exercise = course.EXERCISES[name]
    message = check_graders.verdict(topic, name, check_graders.empty(topic, name))
    assert message == f'{name}: empty. Read tutorial {exercise.tutorial}, "{exercise.section}"; --hint gives a hint.'
    notebook = json.loads((FOLDER.parent / f"{course.NOTEBOOKS[exercise.tutorial]}.ipynb").read_text())
    headings = {line.strip() for cell in notebook["cells"] for line in cell["source"] if line.startswith("## ")}
    assert f"## {exercise.section}" in headings
    stub = inspect.getdoc(check_graders.empty(topic, name))
    assert f"Level: {exercise.level}." in stub and "Hint" not in stub and ".py" not in stub.replace("bandit.py", "")


@pytest.mark.parametrize("name, message, wrong", [(name, *entry) for name in WRONG for entry in WRONG[name]])
def test_a_common_wrong_answer_is_named(name, message, wrong):
    said = check_graders.verdict(check_graders.TOPIC[name], name, wrong)
    assert said is not None and said.startswith(f"{name}: {message}")


@pytest.mark.parametrize("name, answer, says", check_graders.FACTS)
def test_other_mistakes_are_described_by_what_holds_in_every_case(name, answer, says):
    assert says in check_graders.verdict(check_graders.TOPIC[name], name, answer)


def test_no_cause_is_named_for_a_single_true_or_false():
    r"""With one case wrong the message is that case, whatever known mistakes fit."""
    def never_empty(answer, gold):
        return answer == gold == "" or model_answers.is_equivalent(answer, gold)

    said = check_graders.verdict("ex01_rewards", "is_equivalent", never_empty)
    _, cases = check_graders.cases_of("is_equivalent", never_empty)
    assert said == (f"is_equivalent: wrong in 1 of {len(cases)} cases.\n  is_equivalent('', '') gives True: an empty "
                    "text equals nothing")


def test_unseen_mistakes_are_rejected_get_no_false_cause_and_four_in_five_are_named():
    for mistakes, strict in ((UNSEEN, False), (SECOND, True)):
        four_in_five_are_named(mistakes, strict)
    results = [check_graders.judge(name, FRESH[name]) for name in FRESH.keys() - {"pmd_mean_policy"}]  # slow
    assert {result for result, _ in results} <= {"named", "not named"}, results
    assert sum(result == "named" for result, _ in results) >= 0.8 * len(results)


def four_in_five_are_named(mistakes, strict):
    r"""strict: a list of failing cases counts for nothing, whatever words stand in it."""
    named, of = 0, 0
    for name in mistakes.keys() - {"pmd_mean_policy"}:  # slow; check_graders.py takes it too
        for words, wrong in mistakes[name]:
            result, said = check_graders.judge(name, wrong)
            matches = re.search(words, said.split("\n  Seen in")[0])
            assert result == "not named" or result == "named" and matches, (name, words, said)
            named, of = named + (result == "named" if strict else bool(matches)), of + 1
    assert named >= 0.8 * of


def test_generated_mistakes_are_rejected_and_get_no_false_cause():
    results = collections.Counter()
    for name in ("response_mask", "reinforce_loss", "leave_one_out_advantages", "token_mean", "k3", "pmd_loss",
                 "urkl_loss", "ppo_clip_loss"):  # check_graders.py takes all of them; these are quick
        for what, wrong in mutants(getattr(model_answers, name)):
            result, said = check_graders.judge(name, wrong)
            results[result] += 1
            assert result not in ("accepted", "false"), (name, what, said)
    assert results["named"] >= 0.8 * (results["named"] + results["not named"]) and results.total() > 100


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ("pmd_mean_policy", "certificate")])
def test_no_two_known_mistakes_are_the_same_in_every_case(name):
    r"""Else a cause would be named that need not be the one."""
    for (message, wrong), (other_message, other) in itertools.combinations(WRONG[name], 2):
        (called, cases), (other_called, _) = (check_graders.cases_of(name, f) for f in (wrong, other))
        assert not all(grading.agree(grading.run(called, case), grading.run(other_called, case), case)
                       for case in cases if not case.extra), (message, other_message)


def test_a_combination_of_terms_is_not_read_into_a_few_numbers():
    terms = {name: torch.tensor(x) for name, x in (("a", [1.0, 2, 3, 4]), ("b", [1.0, 0, 1, 0]), ("c", [0.0, 1, 5, 2]))}
    case = grading.Case((), terms=terms)
    assert grading.of_terms(torch.tensor([2.0, 4, 6, 8]), torch.tensor([1.0, 2, 3, 4]), case) == ""
    terms = {name: torch.cat([x, 2 * x.flip(0) + 1, x.square() + 3]) for name, x in terms.items()}
    case = grading.Case((), terms=terms)
    said = grading.of_terms(2 * terms["a"] + terms["b"], terms["a"] + terms["b"], case)
    assert said == "a has the factor 2 and needs 1"


def test_every_exercise_has_a_grader_points_and_mistakes():
    names = [name for _, name in check_graders.EXERCISES]
    assert names == list(course.EXERCISES) and len(names) == len(set(names)) == 36 and course.POINTS == 120
    assert {exercise.level for exercise in course.EXERCISES.values()} == {"easy", "medium", "hard"}
    properties = {"collapsing_loss", "mended_loss", "new_advantages", "new_loss", "kl_weight"}  # no known mistakes
    assert set(WRONG) == set(names) - properties and all(len(WRONG[name]) >= 2 for name in WRONG)
    graded = {line.split("(")[0].removeprefix("def test_") for path in FOLDER.glob("test_ex*.py")
              for line in path.read_text().splitlines() if line.startswith("def test_")}
    assert graded == set(names)


@pytest.mark.parametrize("name, wrong, says", [
    ("collapsing_loss", lambda p, o, r: r * p, "no honest mistake"),
    ("collapsing_loss", lambda p, o, r: -2 * r * p, "no honest mistake"),
    ("collapsing_loss", lambda p, o, r: -(r - 1) * p, "does not collapse enough"),
    ("mended_loss", lambda p, o, r: -r * p, "E[R] ends at"),
    ("mended_loss", lambda p, o, r: 0 * p, "E[R] ends at"),
    ("mended_loss", lambda p, o, r: p.no_such_thing, "it raised AttributeError"),
    ("new_advantages", lambda r, G: model_answers.group_mean_advantages(r, G), "(G-1)/G"),
    ("new_advantages", lambda r, G: r, "equal rewards must give 0"),
    ("new_advantages", lambda r, G: -model_answers.new_advantages(r, G), "the sign is wrong"),
    ("new_loss", lambda p, o, a, tau, lam: model_answers.new_loss(p, o, a, tau, 0.0), "tau lam w^2 has the factor 0"),
    ("new_loss", lambda p, o, a, tau, lam: -(p - o).exp() * a + tau * (p - o), "tau w log w has the factor 0"),
])
def test_the_project_is_judged_by_what_it_does(name, wrong, says):
    assert says in check_graders.verdict("ex08_whole_run", name, wrong)


def test_every_question_of_the_notebooks_has_an_answer():
    answers = (FOLDER.parent / "ANSWERS.md").read_text()
    for number, name in course.NOTEBOOKS.items():
        cells = json.loads((FOLDER.parent / f"{name}.ipynb").read_text())["cells"]
        text = "".join(next(cell["source"] for cell in cells if "## Questions\n" in cell["source"]))
        asked = re.findall(r"^(\d)\. \*?\((\w+)\)", text.split("## Questions")[1], re.M)
        section = re.search(rf"^## {number}\. .*?(?=^## |\Z)", answers, re.M | re.S)[0]
        assert re.findall(r"^(\d)\. \((\w+)\)", section, re.M) == asked and len(asked) == 6


def test_the_marking_sheet_has_the_points_and_levels():
    sheet = (FOLDER / "MARKING.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+ \| \d+ \| \d+) \|", sheet, re.M))
    assert {name: row.replace(" ", "").split("|")[::2] for name, row in rows.items()} == {
        name: [exercise.level, str(exercise.points)] for name, exercise in course.EXERCISES.items()}
    assert f"| **sum** | | **{sum(int(row.split('|')[1]) for row in rows.values())}** | **{course.POINTS}** |" in sheet


def pytest_run(*arguments):
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], cwd=ROOT,
                          capture_output=True, text=True)


def test_the_command_fails_with_one_short_message_each_hints_on_request_and_a_mark():
    result = pytest_run("tutorials/exercises/test_ex03_policy_gradients.py", "--hint")
    failures, hints = result.stdout.split(" hints ===")
    assert result.returncode == 1 and "6 failed" in hints and "error" not in result.stdout.casefold()
    assert len(result.stdout.splitlines()) < 45
    assert "1 / (N * max_new_tokens)" in hints and "1 / (N * max_new_tokens)" not in failures
    assert "total      0 of  18 points: 0 of 6 exercises" in hints


def test_the_command_passes_with_the_reference():
    result = pytest_run("tutorials/exercises/test_ex03_policy_gradients.py", "--solutions", "reference")
    assert result.returncode == 0 and "6 passed" in result.stdout and "hints" not in result.stdout
    assert "total     18 of  18 points: 6 of 6 exercises" in result.stdout


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
    "z39": lambda t: t.test_inverse_cdf_by_hand(),
    "z40": lambda t: t.test_before_averaging_not_after(),
    "z41": lambda t: t.test_the_average_kl_leaves_a_skipped_update_out(),
}


@pytest.mark.parametrize("bug", bug_zoo.BUGS, ids=lambda bug: bug.id)
def test_the_projects_tests_catch_every_bug_of_the_zoo(bug, tmp_path, monkeypatch):
    check = bug.check or CHECKS[bug.id]
    bug_zoo.TABLE.test_the_bug_is_caught(bug.description, bug.file, bug.function, bug.old, bug.new, check, tmp_path,
                                         monkeypatch)


def test_the_zoo_is_large_and_not_only_easy():
    assert len(bug_zoo.BUGS) == len({bug.id for bug in bug_zoo.BUGS}) == 41
    assert list(bug_zoo.HINTS) == [bug.id for bug in bug_zoo.BUGS]
    assert len({bug.pitfall for bug in bug_zoo.BUGS} - {0}) >= 15
    assert {bug.difficulty for bug in bug_zoo.BUGS} == {"easy", "medium", "hard"}


def test_the_zoo_tells_what_is_caught_and_what_lives(tmp_path, capsys):
    path = tmp_path / "my_tests.py"
    path.write_text("import torch\nfrom baselines import grpo_loss\nfrom pmd_mean import pmd_loss\n"
                    "from plumbing.metrics import Update, average_kl\n\n\n"
                    "def test_skipped():\n    update = Update(1)\n    update.skipped, update.kl_ref = True, 9.0\n"
                    "    assert average_kl(1.0, update) == 1.0\n\n\n"
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
    assert "caught by test_skipped" in lines["z41"]
    assert all("LIVES, in " in lines[bug] for bug in ("z01", "z12", "z24", "z29"))
    caught = sum("caught by" in line for line in lines.values())
    assert f"{caught} of {len(lines)} caught" in result.stdout and f": {caught} of 30 points." in result.stdout
    assert "min and max swapped" in result.stdout and "k3 in the other direction" not in result.stdout
    assert ("Your tests import none of: reward_math, gsm8k, rpg_losses, aggregation, train, importance.\n"
            in result.stdout)
    with pytest.raises(SystemExit):
        bug_zoo.main([str(path), "--hint", "--bug", "z24"])
    hinted = capsys.readouterr().out
    assert "try: a value worked by hand" in hinted and "k3 in the other direction" not in hinted
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
    assert end.value.code == 2 and says in said.splitlines()[-1]
    assert ("assert 1 == 2" in said or "No module named 'no_such_thing'" in said) == ("fails" in says)
