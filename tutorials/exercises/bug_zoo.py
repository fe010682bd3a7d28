r"""The bug zoo: which bugs do your tests catch?      python tutorials/exercises/bug_zoo.py my_tests.py

Every bug here has been in a real trainer: small, plausible, silent. Each is a patch of one function of one module, made
in a copy; the checkout is never touched. Your file is run by pytest on the unbroken modules, where it must pass, and
then once for each bug. A bug that makes one of your tests fail is caught; one that lets all of them pass lives.

Your tests import the modules by name (`from baselines import grpo_loss`) and change nothing in sys.path. Of a bug that
lives you see the function it is in; --hint says what kind of input would show it, --reveal what it is. One point a bug,
at most 30. Exit status: 0 all caught, 1 some live, 2 your file cannot judge; then you see the traceback of the test
that fails. Your tests alone, on the unbroken code: `python -m pytest my_tests.py`.

How it is quick: importing torch takes seconds, so that happens once; each bug is a fork of this process (Linux, macOS)
that imports the patched module afresh. A module that your tests never import is not run.

The patches are rows of tests/test_mutations.py, by name, and some more below; tutorials/tests/test_exercises.py shows
that the project's own tests catch every one.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]


def _load_table():
    spec = importlib.util.spec_from_file_location("test_mutations_table", ROOT / "tests" / "test_mutations.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    return table


TABLE = _load_table()


@dataclass
class Bug:
    id: str
    pitfall: int  # number in the list of bugs that real trainers have had; 0: not in it
    difficulty: str
    description: str
    file: str  # as it is imported
    function: str
    old: str
    new: str
    check: object = None  # the project's test that catches it, where the patch is a row of tests/test_mutations.py


def row(id, difficulty, description, what, file, function):
    r"""A bug whose patch is a row of tests/test_mutations.py."""
    found = [mutation for mutation in TABLE.MUTATIONS if mutation[:3] == (what, file, function)]
    if len(found) != 1:
        raise LookupError(f"bug {id}: {len(found)} rows {(what, file, function)} in tests/test_mutations.py, need 1")
    pitfall = int(what.split()[0]) if what.split()[0].isdigit() else 0
    return Bug(id, pitfall, difficulty, description, file, function, *found[0][3:])


BUGS = [
    # Rewards
    Bug("z01", 20, "easy", "the FIRST #### is taken for the answer and not the last", "reward_math", "_find",
        'text.rfind("####", 0, end)', 'text.find("####", 0, end)'),
    Bug("z02", 20, "easy", "the minus sign is lost: -7 is read as 7", "reward_math", "_value", "return -value if",
        "return value if"),
    Bug("z03", 20, "medium", "text that is part of the gold counts as equal to it", "reward_math", "is_equivalent",
        "left == _canonical(b)", "str(left) in str(_canonical(b))"),
    Bug("z04", 20, "medium", "several answers in one place, one of them right, are read as an answer", "reward_math",
        "extract_answer", "answer if answer and not _is_several(answer) else None", "answer or None"),
    Bug("z05", 21, "medium", "a format bonus as large as the reward is let through", "reward_math", "math_reward",
        "not 0 <= format_bonus < 1", "not 0 <= format_bonus"),
    # Rollouts and prompts
    Bug("z06", 1, "medium", "the mask is `token != pad`: where pad is eos, the final eos is never trained", "rollout",
        "sample_rollouts", "torch.arange(longest, device=device) < lengths[:, None]", "tokens[:, :longest] != pad"),
    Bug("z07", 2, "easy", "the mask keeps tokens behind the first eos", "rollout", "sample_rollouts",
        "torch.arange(longest, device=device) < lengths[:, None]",
        "torch.ones(n, longest, dtype=torch.bool, device=device)"),
    Bug("z08", 3, "medium", "the terminator is stripped from the response: the model never learns to stop", "rollout",
        "sample_rollouts", "= t + 1\n", "= t\n"),
    Bug("z09", 4, "easy", "position ids count the padding on the left", "scoring", "positions",
        "(attention_mask.cumsum(dim=1) - 1).clamp(min=0)",
        "torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)"),
    Bug("z10", 5, "medium", "sampled at a temperature, log-probs recorded at 1", "rollout", "sample_rollouts",
        "= log_p.gather(1,", "= logits.float().log_softmax(dim=-1).gather(1,"),
    Bug("z11", 19, "easy", "a chat model gets plain text: its template is not used", "gsm8k", "format_prompt",
        "if tokenizer.chat_template:", "if False:"),
    # Advantages
    row("z12", "medium", "equal rewards over a tiny epsilon: advantages of 0.8 out of rounding",
        "7 zero variance over epsilon", "baselines", "grpo_advantages"),
    row("z13", "medium", "in a group of one the advantage is the raw reward", "8 group of one", "baselines",
        "grpo_advantages"),
    row("z14", "easy", "leave-one-out holds the response's own reward", "own reward in leave-one-out", "baselines",
        "rloo_advantages"),
    Bug("z15", 15, "medium", "the caller's rewards are changed in place", "pmd_mean", "pmd_mean_advantages",
        "r = r - r.amin(dim=1, keepdim=True)", "r -= r.amin(dim=1, keepdim=True)"),
    row("z16", "hard", "leave-one-out log-mean-exp by subtraction: it cancels to nothing at small tau",
        "24 leave-one-out by subtraction", "pmd_mean", "pmd_part_advantages"),
    row("z17", "hard", "the leave-one-out mean is clamped at 1e-8: an only winner gets far too small an advantage",
        "24 leave-one-out mean clamped", "pmd_mean", "pmd_part_advantages"),
    # Losses
    row("z18", "easy", "the sign of the log-ratio in PMD's regression", "10 sign of the log-ratio", "pmd_mean",
        "pmd_loss"),
    row("z19", "medium", "PPO's clip with min and max swapped", "9 min and max swapped", "baselines", "grpo_loss"),
    row("z20", "medium", "the ratio is clipped for both signs of the advantage: the gradient back is gone",
        "22 ratio clamped for both signs", "baselines", "grpo_loss"),
    row("z21", "easy", "the KL penalty has the wrong sign: divergence is rewarded", "10 sign", "baselines",
        "grpo_loss"),
    row("z22", "medium", "k1 as a loss: its expected gradient is zero on policy", "11 k1 as a loss", "baselines",
        "grpo_loss"),
    row("z23", "medium", "the KL in the reward has the wrong sign", "10 KL in the reward, sign", "baselines",
        "reinforce_pp_advantages"),
    row("z24", "easy", "k3 in the other direction", "10 direction", "kl_estimators", "k3"),
    row("z25", "hard", "the weight of the corrected penalty is detached: right value, wrong gradient",
        "weight without gradient", "kl_estimators", "corrected_grpo_penalty"),
    row("z26", "medium", "the KL's log-ratio is clamped: far events have no gradient", "22 penalty clamped",
        "rpg_losses", "rkl_loss"),
    row("z27", "medium", "exp of a log-ratio in half precision: inf", "23 exp in half precision", "rpg_losses",
        "urkl_loss"),
    row("z28", "hard", "the reference's weight is left out: right only where the sampler is the reference",
        "reference's weight forgotten", "rpg_losses", "fkl_loss"),
    # Adding up
    row("z29", "medium", "means of microbatch means: each divides by its own number of tokens",
        "12 token count of the microbatch", "aggregation", "aggregate"),
    row("z30", "easy", "1/|o| is kept in Dr. GRPO", "14 1/|o| kept in Dr. GRPO", "aggregation", "aggregate"),
    row("z31", "medium", "an empty response divides by zero", "1 empty response divides by zero", "aggregation",
        "aggregate"),
    # The loop
    Bug("z32", 16, "medium", "the order of the data skips one draw", "train", "next_problems", "range(drawn, drawn +",
        "range(drawn + 1, drawn + 1 +"),
    Bug("z33", 18, "hard", "a metric of the last microbatch is reported as the step's", "train", "backward",
        "update.add(", "update = metrics.Update(num_tokens)\n        update.add("),
    # Clips, styles, sampling
    row("z34", "medium", "the dual clip is missing: a bad event that became likely has a loss without bound",
        "no dual clip", "rpg_losses", "dual_clip_loss"),
    row("z35", "hard", "the sign of A decides the clip, and not that of Ahat", "9 sign of A, not of Ahat", "rpg_losses",
        "reinforce_dual_clip_loss"),
    row("z36", "medium", "the weight of the REINFORCE style is not detached: right value, wrong gradient",
        "stop-gradient missing", "rpg_losses", "reinforce_urkl_loss"),
    row("z37", "easy", "the sequence ratio is the product of the token ratios: 1/|o| is missing",
        "sum for the mean in the sequence ratio", "baselines", "gspo_loss"),
    row("z38", "medium", "what stands at padding reaches the loss: 0 * nan is nan", "nan times a mask of 0",
        "baselines",
        "gspo_loss"),
    Bug("z39", 0, "medium", "at u = 0 a token of probability 0 is drawn", "rollout", "inverse_cdf", "right=True",
        "right=False"),
    Bug("z40", 37, "hard", "the importance weights multiply the loss that is already a mean", "importance", "weighted",
        "losses) * w", "losses) * w.mean()"),
    Bug("z41", 0, "medium", "the KL of a skipped update, nan, enters an average that then stays nan: the reference is "
        "never updated again", "plumbing.metrics", "average_kl", "if update.skipped:", "if False:"),
]
HINTS = {  # what input or measurement would show it
    "z01": "a response that corrects itself", "z02": "two answers that differ in one character",
    "z03": "two texts, one inside the other", "z04": "a response that hedges", "z05": "the limits of the bonus",
    "z06": "a tokenizer whose pad token is its eos", "z07": "count the tokens of a response that ends early",
    "z08": "is the token that ends a response trained?", "z09": "a short prompt beside a long one",
    "z10": "the recorded log-probs against a plain forward pass, at a temperature that is not 1",
    "z11": "the text that the model is given", "z12": "eight equal rewards that no float holds exactly",
    "z13": "a group with nothing to compare with", "z14": "the expected gradient over all groups, against the true one",
    "z15": "the tensor that you passed in, afterwards", "z16": "leave-one-out with one winner and a small tau",
    "z17": "leave-one-out with one winner and a smaller tau", "z18": "a response that has become more likely",
    "z19": "ratios outside the clip, for both signs of the advantage", "z20": "a bad event that became likely",
    "z21": "the gradient of the penalty, far from the reference", "z22": "the expected gradient of the penalty on "
                                                                         "policy",
    "z23": "a token that became likelier than under the reference", "z24": "a value worked by hand",
    "z25": "the gradient, event by event, and not the value", "z26": "a log-ratio of 15", "z27": "float16 log-probs",
    "z28": "a reference that is not the sampler", "z29": "a batch cut in two, with unequal numbers of tokens",
    "z30": "two responses of different lengths: the weight of one token", "z31": "a response without a token",
    "z32": "which problems an epoch visits", "z33": "the same batch in one and in several microbatches",
    "z34": "a bad event with a ratio above c", "z35": "a large beta and a ratio far from 1",
    "z36": "the gradient, event by event, and not the value", "z37": "token ratios 4 and 1", "z38": "nan behind the "
                                                                                                    "end",
    "z39": "an impossible first token, and the lowest uniform number", "z40": "two responses with different weights",
    "z41": "an update that was skipped",
}


def sources(folder):
    r"""The modules that may have a bug, and what they import."""
    return [*folder.glob("*.py"), *folder.glob("plumbing/*.py")]


class Recorder:
    r"""A pytest plugin that remembers what failed first, and how many tests passed."""

    def __init__(self):
        self.failed, self.passed, self.traceback = None, 0, ""

    def _fail(self, where, report):
        crash = getattr(report.longrepr, "reprcrash", None)
        lines = (crash.message if crash else str(report.longrepr)).strip().splitlines() or [""]
        if self.failed is None:
            self.failed, self.traceback = (where, lines[0][:150] if crash else lines[-1][:150]), str(report.longrepr)

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if report.failed:
            self._fail(report.nodeid.split("::", 1)[-1], report)

    def pytest_collectreport(self, report):
        if report.failed:
            self._fail("import", report)


def child(connection, folder, modules, tests):
    r"""In a fork: runs the student's tests with `folder` (the bug) before `modules` (the unbroken copy)."""
    import pytest
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", HYPOTHESIS_STORAGE_DIRECTORY=str(folder), PYTEST_ADDOPTS="")
    sys.dont_write_bytecode = True
    hidden = {str(ROOT), str(ROOT / "tests"), str(FOLDER), ""}
    sys.path = [str(folder), str(modules), *[path for path in sys.path if path not in hidden], str(tests.parent)]
    project = {".".join(path.relative_to(modules).with_suffix("").parts) for path in sources(modules)}
    for name in {"plumbing", *project}:
        sys.modules.pop(name, None)
    recorder = Recorder()
    pytest.main([str(folder / tests.name), "-x", "-q", "-p", "no:cacheprovider", "-c", os.devnull,
                 "--rootdir", str(folder)], plugins=[recorder])
    places = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    strange = [name for name in project & set(places) if places[name] and
               not places[name].startswith((f"{folder}/", f"{modules}/"))]
    connection.send(dict(failed=recorder.failed, traceback=recorder.traceback, passed=recorder.passed, strange=strange,
                         project=sorted(project & set(places)),
                         others=[name for name, place in places.items() if place and name not in project and
                                 not place.startswith((str(folder), str(modules), str(tests.parent)))]))
    connection.close()
    os._exit(0)


def run(jobs, at_once, timeout, modules, tests):
    r"""Runs jobs, {name: folder}, each in a fork: yields (name, what child sent; None: it crashed; "slow")."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(jobs.items()), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            name, folder = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(sender, folder, modules, tests))
            process.start()
            sender.close()
            running[receiver] = (name, process, time.time() + timeout)
        ready = wait(list(running), timeout=0.2)
        for receiver in list(running):
            name, process, deadline = running[receiver]
            if receiver in ready:
                try:
                    result = receiver.recv()
                except EOFError:
                    result = None
            elif time.time() > deadline:
                process.kill()
                result = "slow"
            else:
                continue
            process.join()
            receiver.close()
            del running[receiver]
            yield name, result


def refuse(message, traceback=""):
    print(f"{traceback}\n\n" * bool(traceback) + f"bug_zoo.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Which bugs do your tests catch?", allow_abbrev=False)
    parser.add_argument("tests", help="your file of pytest tests")
    parser.add_argument("--hint", action="store_true", help="of a bug that lives, say what would show it")
    parser.add_argument("--reveal", action="store_true", help="say what every bug is, caught or not")
    parser.add_argument("--bug", action="append", metavar="ID", help="only this bug, such as z07; may be given again")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="bugs at a time (%(default)s)")
    arguments = parser.parse_args(argv)
    tests = Path(arguments.tests).resolve()
    if not tests.is_file() or tests.suffix != ".py":
        refuse(f"no test file at {arguments.tests}: give the path of a Python file with tests")
    unknown = sorted(set(arguments.bug or []) - {bug.id for bug in BUGS})
    if unknown:
        refuse(f"there is no bug {unknown[0]}: they are {BUGS[0].id} to {BUGS[-1].id}")
    bugs = [bug for bug in BUGS if not arguments.bug or bug.id in arguments.bug]

    started = time.time()
    with tempfile.TemporaryDirectory(prefix="bug_zoo_") as temporary:
        temporary = Path(temporary).resolve()
        modules = temporary / "modules"
        (modules / "plumbing").mkdir(parents=True)
        for path in sources(ROOT):
            if path != tests:
                shutil.copy(path, modules / path.relative_to(ROOT))

        def folder_of(name):
            folder = temporary / name
            folder.mkdir()
            shutil.copy(tests, folder / tests.name)
            if (tests.parent / "conftest.py").is_file() and tests.parent not in (FOLDER, ROOT / "tests"):
                shutil.copy(tests.parent / "conftest.py", folder)
            (folder / "tiny").symlink_to(ROOT / "tiny")
            return folder

        (modules / "tiny").symlink_to(ROOT / "tiny")
        (_, plain), = run({"unbroken": folder_of("unbroken")}, 1, 600, modules, tests)
        if plain is None or plain == "slow":
            refuse(f"{tests.name} {'crashes' if plain is None else 'takes over ten minutes'} on the unbroken code: "
                   "mend it first")
        if plain["strange"]:
            refuse(f"{tests.name} imports {plain['strange'][0]} from elsewhere than the copy: leave sys.path alone")
        if plain["failed"]:
            refuse(f"{tests.name} fails on the unbroken code ({': '.join(plain['failed'])}): mend it first",
                   plain["traceback"])
        if not plain["passed"]:
            refuse(f"{tests.name} has no test that passes: write functions whose names begin with test_")
        for name in sorted(plain["others"], key=lambda name: name.count(".")):  # once here, not once for each bug
            if name not in sys.modules:
                try:
                    importlib.import_module(name)
                except BaseException:  # a module that only its own program can import
                    pass
        base = time.time() - started
        print(f"Your {plain['passed']} tests pass on the unbroken code. {len(bugs)} bugs, one at a time:\n")

        jobs = {}
        for bug in bugs:
            if bug.file in plain["project"]:
                jobs[bug.id], path = folder_of(bug.id), f"{bug.file.replace('.', '/')}.py"
                if "." in bug.file:  # a package is imported from one folder
                    shutil.copytree(modules / "plumbing", jobs[bug.id] / "plumbing")
                source = (modules / path).read_text()
                (jobs[bug.id] / path).write_text(TABLE.patched(source, bug.function, bug.old, bug.new))
        results = dict(run(jobs, max(1, arguments.jobs), 30 + 5 * base, modules, tests))

    caught, unused = 0, []
    for bug in bugs:
        result = results.get(bug.id, {"failed": None})
        if result is None or result == "slow":
            by = "a crash" if result is None else "taking too long"
        else:
            by = result["failed"] and result["failed"][0]
        caught += bool(by)
        if bug.file not in plain["project"]:
            unused.append(bug.file)
        line = f"{bug.id}  {bug.file:18s}{bug.difficulty:8s}" + (f"caught by {by}" if by else "LIVES")
        print(line + ("" if by else f", in {bug.function}"))
        if by or arguments.reveal:
            print(f"     {bug.description}, in {bug.function}")
        elif arguments.hint:
            print(f"     try: {HINTS[bug.id]}")
    print(f"\n{caught} of {len(bugs)} caught, {len(bugs) - caught} live, in {time.time() - started:.0f} s: "
          f"{min(caught, 30)} of 30 points.")
    if unused:
        print(f"Your tests import none of: {', '.join(dict.fromkeys(unused))}.")
    if caught < len(bugs) and not arguments.reveal:
        print("--hint says what would show the others, --reveal what they are; try without first.")
    sys.exit(0 if caught == len(bugs) else 1)


if __name__ == "__main__":
    main()
