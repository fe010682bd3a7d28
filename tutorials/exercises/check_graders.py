r"""Are the graders right? They must pass the project's own functions, and never say of a mistake what is not its cause.

Sets of mistakes, each with what a grader says about it:
    known      wrong_answers.py and FACTS below: the graders were written from these
    unseen     tutorials/tests/unseen_mistakes.py: only to test the graders; "fresh" are those of them that were
               written last, with the graders finished, and "second" a blind set that was written later
    generated  tutorials/tests/mutants.py: every small change of a model answer
A mistake is accepted (the grader passes it), named (a cause or a fact about all that fails), or not named (the first
case that fails, in numbers). A cause is false where it does not hold for other inputs than the grader's, or where the
pattern of unseen_mistakes.py does not match it.

tutorials/tests/test_exercises.py runs this in the project's suite; `python tutorials/exercises/check_graders.py` prints
the table, in about four minutes, most of them for pmd_mean_policy.
"""

import importlib
import re
import sys
import types
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
for folder in (FOLDER.parents[1], FOLDER.parent / "tests", FOLDER):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import model_answers  # noqa: E402
from grading import NOT_COMPARED, agree, diagnose, run  # noqa: E402
from mutants import mutants  # noqa: E402
from reference import SOLUTIONS  # noqa: E402
from unseen_mistakes import FRESH, SECOND, UNSEEN  # noqa: E402
from wrong_answers import WRONG  # noqa: E402

EXERCISES = [(topic, name) for topic, functions in SOLUTIONS.items() for name in functions]
TOPIC = {name: topic for topic, name in EXERCISES}
OWN_GRADER = ("collapsing_loss", "mended_loss")  # judged by their runs, no list of cases


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


def cases_of(name, function):
    r"""(function as the grader calls it, the grader's cases)."""
    module, caught = importlib.import_module(f"test_{TOPIC[name]}"), []
    check = module.check
    module.check = lambda solution, name, cases: caught.append((getattr(solution, name), cases))
    try:
        getattr(module, f"test_{name}")(types.SimpleNamespace(**{name: function}))
    finally:
        module.check = check
    return caught[0]


def elsewhere(cases, right, name):
    r"""The cases at other inputs, their wanted results from a right function; without terms, factors and events."""
    generator = torch.Generator().manual_seed(5)

    def other(x):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return 1.13 * x if isinstance(x, float) else x
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        if x.dim() == 1 and len(x) > 1 and (x > 0).all() and abs(x.sum() - 1) < 1e-5:
            return (x.log() + 0.3 * noise).softmax(dim=0)
        return x + 0.05 * noise

    moved = []
    for case in cases:
        if not case.extra:
            args = tuple(x if name == "inverse_cdf" else other(x) for x in case.args)
            case = replace(case, args=args, terms={}, factors={}, events=[])
            result = run(right, case)
            gradient = None if case.gradient is None else result.gradient
            moved.append(replace(case, gradient=gradient, wanted=case.wanted if case.wanted in (
                ValueError, NOT_COMPARED) and not isinstance(case.wanted, torch.Tensor) else result.value))
    return moved


def judge(name, function):
    r"""(accepted, equivalent, named, not named or false; what the grader says) of one wrong answer."""
    called, cases = cases_of(name, function)
    right, _ = cases_of(name, getattr(model_answers, name))
    moved, said = elsewhere(cases, right, name), diagnose(name, called, cases)
    if said is None:
        return ("equivalent" if diagnose(name, called, moved) is None else "accepted"), ""
    said, is_cause = said
    known = [wrong for message, wrong in WRONG.get(name, []) if said.startswith(message)]
    if known and not all(agree(run(called, case), run(known[0], case), case) for case in moved):
        return "false", said
    if re.match("the sign is wrong;|it is (off|0|the|one|what)", said):
        again = diagnose(name, called, moved)
        if again is None or again[0][:14] != said[:14]:
            return "false", said
    return ("named" if is_cause else "not named"), said


def of_model(name, change):
    r"""The model answer with something done to what it returns."""
    return lambda *args: change(getattr(model_answers, name)(*args))


def in_place(rewards, group_size):
    rewards -= rewards.mean()
    return model_answers.group_mean_advantages(rewards, group_size)


def leaky(name):
    r"""The model answer with its detach taken out."""
    changes = mutants(getattr(model_answers, name))
    return next(mutant for what, mutant in changes
                if what.endswith(".detach()  ->  " + what.split(".detach()")[0]))


def half(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    w = (log_probs - old_log_probs.detach()).exp()
    l = log_probs - (old_log_probs if ref_log_probs is None else ref_log_probs).detach()
    return w * (-advantages.detach() + beta * l)


def median(rewards, group_size):
    grouped = rewards.reshape(-1, group_size)
    return (grouped - grouped.median(dim=1, keepdim=True).values).reshape(-1)


def by_column(rewards, group_size):
    grouped = rewards.reshape(-1, group_size)
    return (grouped - grouped.mean(dim=0)).reshape(-1)


def std_is_zero(rewards, group_size):
    grouped = rewards.reshape(-1, group_size)
    std = grouped.std(dim=1, keepdim=True, correction=min(1, group_size - 1))
    return torch.where(std == 0, 0.0, (grouped - grouped.mean(dim=1, keepdim=True)) / std).reshape(-1)


def masked_by_product(log_probs, old_log_probs, advantages, mask, eps_low, eps_high):
    log_w = (log_probs - old_log_probs.detach()) * mask
    s, a = (log_w.sum(dim=1) / mask.sum(dim=1)).exp(), advantages.detach()
    return -torch.minimum(s * a, s.clamp(1 - eps_low, 1 + eps_high) * a)


def two_outcomes(old_probs, rewards, tau):
    good = int(rewards.argmax())
    pair = torch.stack([old_probs[good], 1 - old_probs[good]]), torch.tensor([1.0, 0.0]).double()
    probs, lam = model_answers.pmd_mean_policy(*pair, tau)
    return torch.where(torch.arange(len(rewards)) == good, probs[0], probs[1] * old_probs / (1 - old_probs[good])), lam


def reads_floats(answer, gold):
    def number(text):
        try:
            return float(Fraction(text.strip().replace("$", "").replace(",", "").rstrip(".")))
        except (ValueError, ZeroDivisionError):
            return None

    return model_answers.is_equivalent(answer, gold) or number(answer) == number(gold) is not None


FACTS = [  # (exercise, answer, what the grader must say): no known mistakes, but described by what holds in every case
    ("rkl_loss", of_model("rkl_loss", lambda x: 3 * x), "off by the factor 3, the same in every case"),
    ("urkl_loss", lambda p, old, a, beta, ref=None: model_answers.urkl_loss(p, old, a, beta / 2, ref),
     "beta w l has the factor 0.5 and needs 1."),
    ("urkl_loss", lambda p, old, a, beta, ref=None: model_answers.urkl_loss(p, old, a, beta, ref) + beta * (
        (old if ref is None else ref) - old).detach().exp(), "the gradient is right and the value is not"),
    ("k3", of_model("k3", lambda x: x.reshape(-1, 1)), "its shape is [3, 1]; right is [3]"),
    ("urkl_loss", of_model("urkl_loss", lambda x: x.detach()), "no gradient reaches"),
    ("k3", lambda p, q: model_answers.k3(p.detach(), q) - p + p.detach(), "the value is right and the gradient is not"),
    ("k3", of_model("k3", lambda x: -x), "the sign is wrong"),
    ("k3", lambda p, q: (q - p).exp() - 1 - (q - p), "loses all its digits"),
    ("group_mean_advantages", of_model("group_mean_advantages", lambda x: 2 * x), "factor 2, the same in every case"),
    ("group_mean_advantages", of_model("group_mean_advantages", lambda x: x + 0.5), "same amount everywhere: +0.5"),
    ("group_mean_advantages", of_model("group_mean_advantages", lambda x: x[:, None]), "its shape is [4, 1]"),
    ("group_mean_advantages", of_model("group_mean_advantages", lambda x: x.tolist()), "it returns a list"),
    ("group_mean_advantages", in_place, "changes its argument rewards in place"),
    ("group_mean_advantages", lambda *_: None, "it returns None"),
    ("group_mean_advantages", median, "the median of its group (torch.median) has the factor -1 and needs 0"),
    ("group_mean_advantages", by_column, "the mean of its column in reshape(-1, G) has the factor -1 and needs 0"),
    ("leave_one_out_advantages", of_model("group_mean_advantages", lambda x: x), "(G-1)/G"),
    ("grpo_advantages", lambda *_: 1 / 0, "it raised ZeroDivisionError"),
    ("grpo_advantages", std_is_zero, "std == 0 does not find such a group"),
    ("pmd_loss", of_model("pmd_loss", lambda x: 2 * x), "the factor 1/2 is missing"),
    ("pmd_loss", leaky("pmd_loss"), "gradient flows into"),
    ("ppo_clip_loss", leaky("ppo_clip_loss"), "gradient flows into"),
    ("dual_clip_loss", leaky("dual_clip_loss"), "gradient flows into"),
    ("gspo_loss", leaky("gspo_loss"), "gradient flows into"),
    ("gspo_loss", masked_by_product, "what stands outside the mask, nan here, reaches"),
    ("token_mean", lambda losses, mask, n=None: (losses * mask).sum() / (mask.sum() if n is None else n),
     "what stands outside the mask, nan here, reaches"),
    ("rkl_loss", half, "exp overflows: convert to float32"),
    ("response_mask", of_model("response_mask", lambda x: ~x), "it is the opposite"),
    ("response_mask", of_model("response_mask", lambda x: x.long()), "it returns a tensor of integers (torch.int64)"),
    ("pad_left", lambda rows, pad: torch.zeros(2, 3), "should return 2 things"),
    ("pad_left", of_model("pad_left", lambda x: x[::-1]), "right, but in the wrong order"),
    ("pad_left", of_model("pad_left", lambda x: (x[0], x[1].bool())), "number 2: it returns a bool tensor"),
    ("pmd_mean_policy", of_model("pmd_mean_policy", lambda x: (x[0], x[1].item())), "number 2: it returns a number"),
    ("pmd_mean_policy", two_outcomes, "do not solve the equation of each rho"),
    ("is_equivalent", lambda answer, gold: float(answer) == float(gold), "it raised ValueError"),
    ("is_equivalent", reads_floats, "also beyond the digits of a float"),
    ("is_equivalent", lambda answer, gold: model_answers.is_equivalent(answer.lstrip("-"), gold.lstrip("-")),
     "a minus sign belongs to the number"),
    ("is_equivalent", lambda answer, gold: model_answers.is_equivalent(*(re.sub(r"[^\d./-]", "", x) or x for x in (
        answer, gold))), "two different texts with the same digits"),
    ("extract_answer", lambda response: "18", "a minus sign belongs to the answer"),
]


def report():
    r"""{set: Counter of what the graders do}, and a line for each failure."""
    counts, lines = {name: Counter() for name in ("known", "unseen", "fresh", "second", "generated")}, []

    def note(which, verdict, *more):
        counts[which][verdict] += 1
        if verdict in ("accepted", "false"):
            lines.append(f"{which}: {verdict}: {' | '.join(more)}")

    for name, entries in WRONG.items():
        for message, wrong in entries:
            said = verdict(TOPIC[name], name, wrong)
            note("known", "accepted" if said is None else "named" if said.startswith(f"{name}: {message}") else "false",
                 name, message, said or "")
    for name, wrong, words in FACTS:
        said = verdict(TOPIC[name], name, wrong)
        note("known", "accepted" if said is None else "named" if words in said else "false", name, words, said or "")
    for name, entries in UNSEEN.items():
        for number, (words, wrong) in enumerate(entries):
            result, said = judge(name, wrong)
            if result in ("named", "not named"):
                matches = re.search(words, said.split("\n  Seen in")[0])
                result = "named" if matches else "false" if result == "named" else "not named"
            note("unseen", result, f"{name} {number}", words, said)
    for name, wrong in FRESH.items():
        result, said = judge(name, wrong)
        note("fresh", result, name, said)
    for name, entries in SECOND.items():
        for words, wrong in entries:
            result, said = judge(name, wrong)
            holds = result != "named" or re.search(words, said.split("\n  Seen in")[0])
            note("second", result if holds else "false", name, words, said)
    for _, name in EXERCISES:
        if name not in OWN_GRADER:
            for what, wrong in mutants(getattr(model_answers, name)):
                result, said = judge(name, wrong)
                note("generated", "raises" if "it raised " in said else result, name, what, said)
    return counts, lines


def main():
    bad = 0
    for topic, name in EXERCISES:
        reference, stub = verdict(topic, name, SOLUTIONS[topic][name]), verdict(topic, name, empty(topic, name)) or ""
        if reference or "empty" not in stub:
            bad += 1
            print(f"{name}: {reference or 'the empty exercise is not recognised'}")
    counts, lines = report()
    print("\n".join(lines))
    for which, count in counts.items():
        mistakes = sum(count.values()) - count["equivalent"]
        named = count["named"] + count["raises"]
        print(f"{which:10s} {mistakes:4d} mistakes: {named / mistakes:.0%} named, {count['not named']} not named, "
              f"{count['false']} with a false cause, {count['accepted']} accepted"
              + (f"; {count['raises']} of the named raise an exception" if count["raises"] else "")
              + (f"; {count['equivalent']} more are right all the same" if count["equivalent"] else ""))
    sys.exit(1 if bad or lines else 0)


if __name__ == "__main__":
    main()
