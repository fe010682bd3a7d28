r"""Are the graders right? They must pass the project's own functions, and say the right thing about everything else.

- `verdict(topic, name, function)` is what a grader says about one answer: None where it passes, else its message.
- GENERIC are mistakes that are in no list: what the graders make out of the numbers alone.

tutorials/tests/test_exercises.py runs all of it in the project's suite; `python tutorials/exercises/check_graders.py`
prints it.
"""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
for folder in (FOLDER.parents[1], FOLDER):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from reference import SOLUTIONS  # noqa: E402
from wrong_answers import WRONG  # noqa: E402

EXERCISES = [(topic, name) for topic, functions in SOLUTIONS.items() for name in functions]
TOPIC = {name: topic for topic, name in EXERCISES}


def verdict(topic, name, function):
    r"""What the grader of `name` says about `function`: None where it passes, else the message of its failure."""
    grader = getattr(importlib.import_module(f"test_{topic}"), f"test_{name}")
    try:
        grader(types.SimpleNamespace(**{name: function}))
    except pytest.fail.Exception as failure:
        return str(failure)
    return None


def empty(topic, name):
    r"""The exercise as the student finds it."""
    return getattr(importlib.import_module(topic), name)


def changed(name, change):
    r"""The right answer with something done to what it returns."""
    right = SOLUTIONS[TOPIC[name]][name]
    return lambda *args: change(right(*args))


def in_place(rewards, group_size):
    rewards -= rewards.mean()
    return SOLUTIONS["ex03_policy_gradients"]["group_mean_advantages"](rewards, group_size)


GENERIC = [  # (exercise, answer, what the grader must say)
    ("rkl_loss", changed("rkl_loss", lambda x: 3 * x),
     "w A has the factor 3 and needs 1, beta w l has the factor 3 and needs 1"),
    ("urkl_loss", lambda p, old, a, beta, ref=None: SOLUTIONS["ex06_rpg"]["urkl_loss"](p, old, a, beta / 2, ref),
     "urkl_loss: in the weight of grad log pi_theta, beta w l has the factor 0.5 and needs 1."),
    ("k3", changed("k3", lambda x: x.reshape(-1, 1)), "right is [3]"),
    ("urkl_loss", changed("urkl_loss", lambda x: x.detach()), "no gradient reaches"),
    ("k2", changed("k2", lambda x: 0.25 * x), "factor 0.25 everywhere"),
    ("k3", changed("k3", lambda x: -x), "the sign is wrong"),
    ("group_mean_advantages", changed("group_mean_advantages", lambda x: 2 * x), "factor 2 everywhere"),
    ("group_mean_advantages", changed("group_mean_advantages", lambda x: x + 0.5), "same amount everywhere: +0.5"),
    ("group_mean_advantages", changed("group_mean_advantages", lambda x: x[:, None]), "its shape is [4, 1]"),
    ("group_mean_advantages", changed("group_mean_advantages", lambda x: x.tolist()), "right is [0.75"),
    ("group_mean_advantages", in_place, "changes argument 1 in place"),
    ("group_mean_advantages", lambda *_: None, "it gives None"),
    ("leave_one_out_advantages", changed("leave_one_out_advantages", lambda x: 0.75 * x + 0.0), "(G-1)/G"),
    ("grpo_advantages", lambda *_: 1 / 0, "raised ZeroDivisionError"),
    ("pmd_loss", changed("pmd_loss", lambda x: 10 * x), "factor 10 everywhere, which is 1/tau"),
    ("response_mask", changed("response_mask", lambda x: ~x), "counts and should not"),
    ("response_mask", changed("response_mask", lambda x: x.long()), "right is torch.bool"),
    ("pad_left", lambda rows, pad: torch.zeros(2, 3), "should return 2 things"),
    ("positions", lambda mask: mask * float("nan"), "it is nan at [0, 0]"),
    ("is_equivalent", lambda answer, gold: float(answer) == float(gold), "raised ValueError"),
    ("extract_answer", lambda response: "18", "right is '-7'"),
]


def main():
    bad = 0
    for topic, name in EXERCISES:
        said = [verdict(topic, name, wrong) for _, wrong in WRONG[name]]
        missed = [message for (message, _), text in zip(WRONG[name], said) if text is None or message not in text]
        empty_says = verdict(topic, name, empty(topic, name)) or ""
        reference = verdict(topic, name, SOLUTIONS[topic][name])
        fine = not missed and reference is None and "missing" in empty_says
        bad += not fine
        print(f"{name:28s}{len(said)} wrong answers  {'all named' if fine else 'NOT FINE'}")
        for line in [*missed, reference or ""] if not fine else []:
            print("    " + line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
