r"""Stale data: objectives against updates per rollout, on the embedded model. `python studies/staleness.py`

Both papers are about learning from responses that the policy has moved away from: PMD from large rollouts that are used
for many updates, RPG from off-policy ratios and their clip. Here the number of updates per rollout goes from 1, where
every response is the policy's own, to 64, where all are the base model's.

    python studies/staleness.py --quick      four objectives, three seeds: at most ten minutes on two cores
    python studies/staleness.py              everything, 5.8 core-hours; can be stopped, and goes on where it was
    python studies/staleness.py --report     the tables and pictures of the runs there are

A run is `train.train` with other settings. It adds a line to runs.jsonl and leaves nothing else. results.md, beside it,
is made from these lines.

Protocol, fixed before the runs
    a run        64 optimizer steps of 16 responses (2 prompts x 8), a constant learning rate after 10 warm-up steps,
                 AdamW and clipped gradients as in train.py. U updates per rollout: a rollout is 16 U responses, each
                 used once, in 64 / U rounds. So every run samples 1,024 responses and takes 64 steps, whatever U is:
                 what differs is how stale the data are
    evaluation   greedy, at steps 0, 16, 32, 48 and 64, on 192 held-out problems
    selection    each point of a picture has candidates: the four learning rates of RATES, and where it says "tuned"
                 three values of tau or beta too. The best mean of the final accuracy is chosen (the first of equals),
                 on seeds 100 and 101 (100 alone outside the main panel) and on the last 192 problems of the test set
    final        the chosen candidate on seeds 0 to 4 and the first 192 problems: no seed and no problem is in both
    objectives   tau 0.01, beta 1e-4 and clips as in the papers; K2.5 publishes no tau and no bounds: tau 0.01 is ours,
                 the bounds are DAPO's. "dapo" is its clip and its average alone, without filtering and penalty.
                 With one update per rollout all ratios are 1, and the objectives of SAME_ON_POLICY take the steps of
                 another (RLOO's gradient is 8/7 of PMD-mean's, which Adam and the clipped norm take out): one run
Panels
    main         (a) equal sampled responses (and equal steps), by U = 1, 4, 16, 64
    steps        (b) equal optimizer steps, by U: a rollout has at most 64 responses, and is used again in 4 epochs
                 (U = 16) or 16 (U = 64), so the same 64 steps are fed by 1,024, 1,024, 256 and 64 responses
    rates        (c) the final accuracy at each learning rate: the selection runs of the main panel
    low          (d) PMD-mean against PMD-part where base success is 0.05: the nine situations of LOW, sampled at
                 temperature 0.5 (greedy it is 0.005). By G = 2, 4, 8, 16 responses a group; U = 16, 1,024 responses
                 and 64 steps whatever G is
    strength     (e) the main panel with tau or beta tuned where data are stale, at U = 16 and 64
    common       (f) the main panel with one learning rate for all, 1e-4: no selection
    low_rates    (g) the low panel with tau 0.01 and one learning rate for both, 5e-5, 1e-4 and 2e-4: no selection
Definitions, of a run's five accuracies
    final        the last one
    best         the highest one
    drawdown     the largest fall from the best so far
    area         the mean over optimizer steps, by trapezoids
    collapsed    final is below the base model's accuracy, or below half the run's best. Where weights or gradients
                 were not finite, the run ends and final is 0
    time to 0.90 optimizer steps to the first accuracy of 0.90 or more; "-" where a run has none
Intervals are 95 %, by Student's t over the seeds (0.3 % short at five of them). They are not adjusted for the number of
comparisons. The 192 problems leave an error of up to 0.035, part of it common to all lines.
An expectation (EXPECTED) is about differences of final accuracies, paired by seed. It holds if the interval is above
0 at every x named, and in part if at some x. It is reversed if the interval is below 0 at some x and above 0 at none.
Otherwise the difference is not seen.

Cost: 1,056 runs of 16 to 22 core-seconds each, 31 with one update per rollout: 5.8 core-hours. --quick has 45 runs,
15 core-minutes. Measured on a busy AMD EPYC; a free core is faster.

What was changed after the first runs
    Some thirty trial runs with seed 100 came before, most of them on the first 192 problems. They fixed the size of a
    run (24 responses a step took half as long again and showed the same) and the grids of learning rates and taus.
    The situations of `low` have the lowest base success, and its temperature is the one that makes it 0.05; three runs
    there were seen. The table of collapsed runs was added while the runs went on; it selects nothing.
    `common` and `low_rates` were added when main was complete and half of the selection of low. In main the selection
    gave 1e-4 to some objectives and 2e-4 to others. Where two seeds select 2e-4, the final seeds end 0.05 lower. So
    part of a difference between objectives comes from the rate. In low the final accuracies came close to 1 and say
    little. At which rates a run collapses says more.
    rpg_reinforce_clip_urkl had ended as rpg_clip_urkl in every run of main: inside the clip their gradients are equal,
    outside both are 0. So steps, strength and common run the latter alone, and pictures show one line for both.
    strength had U = 4 too, and U = 1 for the tau in PMD-part's baseline. They were left out for time, before any run.
    The code that trains got faster while the runs went on; what it computes stayed the same to rounding.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import random
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from gsm8k import load_problems  # noqa: E402
from plumbing import run as plumbing  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from studies.claims import mean_interval  # noqa: E402
from tiny.problems import make_problem  # noqa: E402

RESULTS = ROOT / "studies" / "results" / "staleness"
STEPS, MINIBATCH, EVALUATE_EVERY, PROBLEMS = 64, 16, 16, 192
UPDATES, GROUP_SIZES = (1, 4, 16, 64), (2, 4, 8, 16)
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
SELECTION_SEEDS, FINAL_SEEDS = (100, 101), (0, 1, 2, 3, 4)
SECONDS = {1: 35, 4: 20, 16: 17, 64: 16}  # a core's for a run, by updates per rollout, before any was measured
REUSED = 64  # responses in a rollout of the panel `steps`, at most
LOW, LOW_TEMPERATURE = (3, 10, 12, 13, 24, 25, 36, 37, 43), 0.5  # situations of tiny/problems.py

# Objective: the name of its strength, and its values, the papers' first.
TAUS, BETAS = (0.01, 0.1, 1.0), (1e-4, 0.1, 1.0)
STRENGTHS = {
    "pmd_mean": ("tau", TAUS), "pmd_part": ("tau", TAUS), "pmd_k25": ("tau", TAUS), "rpg_urkl": ("beta", BETAS),
    "rpg_clip_urkl": ("beta", BETAS), "rpg_reinforce_clip_urkl": ("beta", BETAS), "grpo": ("beta", (1e-4,)),
    "dapo": (None, (None,)), "gspo": (None, (None,)), "rloo": (None, (None,)),
}
SAME_ON_POLICY = {"rloo": "pmd_mean", "rpg_clip_urkl": "rpg_urkl", "rpg_reinforce_clip_urkl": "rpg_urkl",
                  "pmd_k25": "rpg_urkl"}
LINES = [name for name in STRENGTHS if name != "rpg_reinforce_clip_urkl"]  # which ends as rpg_clip_urkl
TUNED = [name for name in LINES if len(STRENGTHS[name][1]) > 1]
QUICK = ("pmd_mean", "rpg_clip_urkl", "grpo", "rloo")
PANELS = ("main", "steps", "rates", "low", "strength", "common", "low_rates")

# What the papers lead one to expect: (panel, a line, a line that should end lower, at these x, source)
EXPECTED = [
    ("main", "pmd_mean", "grpo", (16, 64), "2602.05933, abstract"),
    ("strength", "pmd_mean", "grpo", (16, 64), "2602.05933, abstract; tau tuned"),
    ("main", "rpg_clip_urkl", "rpg_urkl", (16, 64), "2505.17508, Sec. 3.3: the clip is for stability off policy"),
    ("main", "rpg_urkl", "rloo", (16, 64), "2505.17508: off policy the importance weight is needed"),
    ("main", "rpg_reinforce_clip_urkl", "dapo", (16, 64), "2505.17508, Tables 3, 5 and 8"),
    ("main", "rpg_reinforce_clip_urkl", "grpo", (16, 64), "2505.17508, Table 3"),
    ("low", "pmd_mean, papers'", "pmd_part, papers'", GROUP_SIZES, "2602.05933, abstract"),
    ("low", "pmd_mean, tuned", "pmd_part, tuned", GROUP_SIZES, "2602.05933, abstract; tau tuned"),
    ("common", "pmd_mean", "grpo", (16, 64), "2602.05933, abstract"),
    ("common", "rpg_clip_urkl", "rpg_urkl", (16, 64), "2505.17508, Sec. 3.3"),
    ("common", "rpg_urkl", "rloo", (16, 64), "2505.17508: off policy the importance weight is needed"),
    ("common", "rpg_clip_urkl", "grpo", (16, 64), "2505.17508, Table 3"),
    *(("low_rates", f"pmd_mean, {lr:g}", f"pmd_part, {lr:g}", GROUP_SIZES, "2602.05933, abstract") for lr in RATES[:3]),
]


# --- the plan ---

def candidate(objective, lr, updates, strength=None, rollout=None, group_size=8, problems="all"):
    r"""The settings of a run but for its seed. strength: tau or beta, the papers' if None."""
    objective = SAME_ON_POLICY.get(objective, objective) if updates == 1 else objective
    strength = STRENGTHS[objective][1][0] if strength is None else strength
    return dict(objective=objective, strength=strength, lr=lr, updates=updates, group_size=group_size,
                rollout=rollout or MINIBATCH * updates, minibatch=MINIBATCH, steps=STEPS, problems=problems)


def points(panel):
    r"""The points of a panel, each a dict: panel, line, x, its candidates, and the seeds that select among them."""
    def point(line, x, candidates):
        return dict(panel=panel, line=line, x=x, candidates=candidates,
                    seeds={"main": SELECTION_SEEDS, "common": (), "low_rates": ()}.get(panel, SELECTION_SEEDS[:1]))

    if panel == "main":
        return [point(name, u, [candidate(name, lr, u) for lr in RATES]) for name in STRENGTHS for u in UPDATES]
    if panel == "steps":
        return [point(name, u, [candidate(name, lr, u, rollout=min(MINIBATCH * u, REUSED)) for lr in RATES])
                for name in LINES for u in UPDATES if MINIBATCH * u > REUSED]
    if panel == "strength":
        return [point(name, u, [candidate(name, lr, u, strength) for strength in STRENGTHS[name][1] for lr in RATES])
                for name in TUNED for u in UPDATES if u >= 16]
    if panel == "common":
        return [point(name, u, [candidate(name, RATES[1], u)]) for name in LINES for u in UPDATES]
    if panel == "low_rates":
        return [point(f"{name}, {lr:g}", size, [candidate(name, lr, 16, None, None, size, "low")])
                for name in ("pmd_mean", "pmd_part") for lr in RATES[:3] for size in GROUP_SIZES]
    return [point(f"{name}, {label}", size, [candidate(name, lr, 16, strength, None, size, "low")
                                             for strength in strengths for lr in RATES])
            for label, strengths in (("papers'", TAUS[:1]), ("tuned", TAUS))
            for name in ("pmd_mean", "pmd_part") for size in GROUP_SIZES]


def key(spec):
    return json.dumps(spec, sort_keys=True)


def chosen(point, runs):
    r"""The candidate with the best mean final accuracy on the selection seeds; None while one of its runs is missing.

    runs: {key of a run's settings: its line of runs.jsonl}.
    """
    def mean(spec):
        return sum(figures(runs[key({**spec, "seed": seed})])["final"] for seed in point["seeds"])

    if any(key({**spec, "seed": seed}) not in runs for spec in point["candidates"] for seed in point["seeds"]):
        return None
    return max(point["candidates"], key=mean)


def selection(panel_points):
    r"""The settings of all selection runs, seed by seed, none twice."""
    specs = [{**spec, "seed": seed} for seed in SELECTION_SEEDS for point in panel_points
             for spec in point["candidates"] if seed in point["seeds"]]
    return list({key(spec): spec for spec in specs}.values())


def finals(panel_points, runs, seeds):
    r"""The settings of the final runs of the points whose selection is complete, seed by seed, none twice."""
    best = [spec for spec in (chosen(point, runs) for point in panel_points) if spec]
    specs = [{**spec, "seed": seed} for seed in seeds for spec in best]
    return list({key(spec): spec for spec in specs}.values())


# --- a run ---

@lru_cache
def problems_of(kind, split):
    r"""The problems of a split, loaded once per process: of tiny/, or "low", of the situations of LOW, made here."""
    if kind == "all":
        return load_problems(ROOT / "tiny" / f"{split}.jsonl")
    rng, problems = random.Random(f"staleness {split}"), {}
    while len(problems) < (64 * len(LOW) if split == "train" else 2 * PROBLEMS):
        problem = make_problem(LOW[len(problems) % len(LOW)], rng, split)
        problems[problem["question"]] = problem
    return list(problems.values())


class Watched(plumbing.Run):
    r"""A run that is evaluated every so many optimizer steps, also in the middle of a rollout, and leaves no file."""

    base = {}  # accuracy before training, the same in every run on the same problems

    def __init__(self, spec, settings):
        super().__init__(settings)
        selecting = spec["seed"] in SELECTION_SEEDS
        problems = problems_of(spec["problems"], "test")
        self.held_out = problems[-PROBLEMS:] if selecting else problems[:PROBLEMS]
        known = (spec["problems"], selecting)
        self.base[known] = self.base[known] if known in self.base else self.accuracy()
        self.curve = [(0, self.base[known])]

    def accuracy(self):  # all problems at a time, whatever the size of a rollout is
        settings = dataclasses.replace(self.settings, prompts_per_step=PROBLEMS, group_size=1)
        return train.evaluate(SimpleNamespace(settings=settings, policy=self.policy, tokenizer=self.tokenizer,
                                              held_out=self.held_out, evaluation_is_due=lambda step: True), 0)

    def after(self, update, step):
        super().after(update, step)
        if self.optimizer_steps % EVALUATE_EVERY == 0:
            self.curve.append((self.optimizer_steps, self.accuracy()))

    def finish(self):
        pass


def settings_of(spec, folder):
    r"""The settings of train.py for a run."""
    name, G = STRENGTHS[spec["objective"]][0], spec["group_size"]
    flags = dict(
        objective=spec["objective"], seed=spec["seed"], lr=spec["lr"], lr_decay_steps=0, group_size=G,
        prompts_per_step=spec["rollout"] // G, minibatch_size=spec["minibatch"],
        epochs=spec["updates"] * spec["minibatch"] // spec["rollout"], steps=spec["steps"] // spec["updates"],
        temperature=LOW_TEMPERATURE if spec["problems"] == "low" else 1.0, reward_above=-1, reward_below=2,
        eval_every=0, save_every=0,
        overlong_penalty=0, device="cpu", out=folder, **({name: spec["strength"]} if name else {}))
    settings = parse_settings([text for flag, value in flags.items()
                               for text in (f"--{flag.replace('_', '-')}", str(value))])
    settings.filter_groups = False  # dapo's own, which no flag turns off
    return settings


def one_run(spec):
    r"""Trains; returns the line of runs.jsonl: settings, curve, and a few metrics of up to four rounds, the last one
    among them."""
    started, clock, runs = time.time(), time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(spec, folder)
        with (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()),
              mock.patch.object(plumbing, "load_problems", lambda *_: problems_of(spec["problems"], "train")),
              mock.patch.object(train, "Run", lambda s: runs.append(Watched(spec, s)) or runs[0])):
            try:
                train.train(settings)
            except SystemExit:  # weights or gradients were not finite: nothing that could answer
                runs[0].curve.append((spec["steps"], 0.0))
    rows = runs[0].rows[1:]
    rows = [rows[len(rows) * (i + 1) // min(4, len(rows)) - 1] for i in range(min(4, len(rows)))]
    return dict(
        settings=spec, curve=[(step, round(accuracy, 4)) for step, accuracy in runs[0].curve],
        rounds={name: [row[name] and float(f"{row[name]:.3g}") for row in rows] for name in (
            "step", "reward_mean", "kl_to_old", "entropy", "response_length", "truncated_fraction", "grad_norm")},
        seconds=round(time.time() - started, 1), core_seconds=round(time.process_time() - clock, 1))


def finished(specs, workers):
    r"""Runs the settings, which are asked for one by one as a worker is free; yields the lines as they come."""
    if workers == 1:
        yield from map(one_run, specs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = set()
        for spec in specs:
            running.add(pool.submit(one_run, spec))
            if len(running) == workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(running))


def read_runs(folder):
    r"""{key of its settings: line} of folder/runs.jsonl; a last line that was cut off is dropped from the file."""
    path = folder / "runs.jsonl"
    if not path.exists():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return {key(line["settings"]): line for line in map(json.loads, whole.splitlines())}


def run_all(specs, folder, runs, workers, deadline, bar):
    r"""Adds the lines of those that are not in `runs` to it and to the file; False where the time was up before."""
    left = iter([spec for spec in specs if key(spec) not in runs])
    in_time = iter(lambda: next(left, None) if time.time() < deadline else None, None)
    with open(folder / "runs.jsonl", "a") as file:
        for line in finished(in_time, workers):
            file.write(json.dumps(line) + "\n")
            file.flush()
            runs[key(line["settings"])] = line
            bar.update()
    return next(left, None) is None


# --- figures ---

def figures(run):
    r"""{name: value} of a line of runs.jsonl: the definitions at the top of the file."""
    steps, values = zip(*run["curve"])
    best = [max(values[: i + 1]) for i in range(len(values))]
    area = sum((b - a) * (v + w) / 2 for a, b, v, w in zip(steps, steps[1:], values, values[1:])) / steps[-1]
    return dict(
        final=values[-1], best=best[-1], drawdown=max(b - v for b, v in zip(best, values)), area=area,
        collapsed=values[-1] < max(values[0], best[-1] / 2),
        time_to_90=next((step for step, value in zip(steps, values) if value >= 0.9), None))


def interval(values):
    r"""(mean, low, high): 95 % by Student's t; of a single value no interval is known (nan)."""
    return mean_interval(values) if len(values) > 1 else (values[0], math.nan, math.nan)


def summary(point, runs):
    r"""What the final runs of a point say, as far as there are any: the point with figures and its chosen candidate."""
    best = chosen(point, runs)
    found = {seed: figures(runs[key({**best, "seed": seed})]) for seed in FINAL_SEEDS
             if best and key({**best, "seed": seed}) in runs}
    if not found:
        return None
    mean, low, high = interval([f["final"] for f in found.values()])
    reached = [f["time_to_90"] for f in found.values()]
    return dict(
        {name: point[name] for name in ("panel", "line", "x")}, candidate=best, seeds=len(found), final=mean, low=low,
        high=high, finals={seed: f["final"] for seed, f in found.items()},
        **{name: sum(f[name] for f in found.values()) / len(found) for name in ("best", "drawdown", "area")},
        collapsed=sum(f["collapsed"] for f in found.values()),
        time_to_90="-" if None in reached else sum(reached) / len(reached))


def summaries(panel, runs, lines=None):
    r"""The summaries of a panel; in `steps` and `strength` with the points that they share with the main panel."""
    def found(some):
        return [s for s in (summary(point, runs) for point in some if lines is None or point["line"] in lines) if s]

    own = points(panel)
    summed = found(own)
    if panel in ("steps", "strength") and summed:  # without runs of its own it would be the main panel again
        places = {(point["line"], point["x"]) for point in own}
        summed += found({**point, "panel": panel} for point in points("main")
                        if point["line"] in LINES and (point["line"], point["x"]) not in places)
    return sorted(summed, key=lambda s: s["x"])


def paired(finals, others):
    r"""Differences of final accuracies of the seeds that both have, {seed: accuracy} each: a list."""
    return [finals[seed] - others[seed] for seed in finals if seed in others]


def verdicts(runs):
    r"""EXPECTED as rows of a table: the paired differences with their intervals, and what they say."""
    rows = []
    for panel, line, other, xs, source in EXPECTED:
        finals = {(s["line"], s["x"]): s["finals"] for s in summaries(panel, runs)}
        found = []
        for x in xs:
            both = paired(finals.get((line, x), {}), finals.get((other, x), {}))
            if len(both) > 1:
                found.append((x, *interval(both)))
        above, below = sum(low > 0 for *_, low, _ in found), sum(high < 0 for *_, high in found)
        verdict = ("not run" if len(found) < len(xs) else "holds" if above == len(xs) else "holds in part" if above
                   else "reversed" if below else "not seen")
        verdict += f", reversed at {below} of {len(xs)}" if above and below else ""
        shown = "; ".join(f"{x}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]" for x, mean, low, high in found)
        rows.append(f"| {line} above {other} | {panel} | {source} | {shown or '-'} | {verdict} |")
    return ["| expected | panel | source | difference of final accuracies at x | verdict |",
            "| --- | --- | --- | --- | --- |", *rows]


def table(found):
    r"""Summaries as the rows of a Markdown table."""
    lines = ["| line | x | lr | tau, beta | final accuracy | best | drawdown | area | collapsed | steps to 0.90 |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for s in sorted(found, key=lambda s: s["line"]):  # x stays in order
        strength = "-" if s["candidate"]["strength"] is None else f"{s['candidate']['strength']:g}"
        reached = s["time_to_90"] if s["time_to_90"] == "-" else f"{s['time_to_90']:.0f}"
        lines.append(f"| {s['line']} | {s['x']} | {s['candidate']['lr']:g} | {strength} | {s['final']:.3f} "
                     f"[{s['low']:.3f}, {s['high']:.3f}] | {s['best']:.3f} | {s['drawdown']:.3f} | {s['area']:.3f} | "
                     f"{s['collapsed']} of {s['seeds']} | {reached} |")
    return lines


def rates_of(point, runs):
    r"""[(candidate, mean final accuracy on the selection seeds)] of a point, of the candidates that have all runs."""
    means = []
    for spec in point["candidates"]:
        lines = [runs.get(key({**spec, "seed": seed})) for seed in point["seeds"]]
        if all(lines):
            means.append((spec, sum(figures(line)["final"] for line in lines) / len(lines)))
    return means


def selection_table(panel, runs):
    r"""Every selection run of a panel: a row for each point and strength, a column for each learning rate."""
    lines = [f"| line | x | tau, beta | {' | '.join(f'{lr:g}' for lr in RATES)} |", "| --- " * (3 + len(RATES)) + "|"]
    for point in points(panel):
        best = chosen(point, runs)
        for strength in dict.fromkeys(spec["strength"] for spec in point["candidates"]):
            cells = {spec["lr"]: f"**{mean:.3f}**" if spec == best else f"{mean:.3f}"
                     for spec, mean in rates_of(point, runs) if spec["strength"] == strength}
            shown = "-" if strength is None else f"{strength:g}"
            lines.append(f"| {point['line']} | {point['x']} | {shown} | "
                         f"{' | '.join(cells.get(lr, '-') for lr in RATES)} |")
    return lines


def collapse_table(runs):
    r"""Every collapsed run, worst first, with its metrics of train.py in the first and the last recorded round."""
    names = ("reward_mean", "entropy", "kl_to_old", "response_length", "truncated_fraction", "grad_norm")
    lines = [f"| objective | updates | lr | tau, beta | G | seed | best | final | {' | '.join(names)} |",
             "| --- " * (8 + len(names)) + "|"]
    for run in sorted(runs.values(), key=lambda run: run["curve"][-1][1]):
        found, spec = figures(run), run["settings"]
        if found["collapsed"]:
            shown = "-" if spec["strength"] is None else f"{spec['strength']:g}"
            ends = [" to ".join("-" if x is None else f"{x:g}" for x in dict.fromkeys((xs[0], xs[-1])))
                    for xs in (run["rounds"][name] for name in names)]
            setting = f"{spec['updates']} | {spec['lr']:g} | {shown} | {spec['group_size']} | {spec['seed']}"
            lines.append(f"| {spec['objective']} | {setting} | {found['best']:.3f} | {found['final']:.3f} | "
                         f"{' | '.join(ends)} |")
    return lines


def signs_table(runs):
    r"""What metrics.jsonl says of healthy runs (they end at 0.7 or more) and of collapsed ones, by updates per rollout.

    A cell: the values that a tenth and nine tenths of the runs are below, of the first and the last recorded round.
    """
    names = ("kl_to_old", "entropy", "reward_mean", "response_length", "truncated_fraction")

    def spread(values):
        values = sorted(value for value in values if value is not None)
        return f"{values[len(values) // 10]:.2g} to {values[(9 * len(values) - 1) // 10]:.2g}" if values else "-"

    lines = [f"| updates | runs | number | {' | '.join(f'{n}, first | last' for n in names)} |",
             "| --- " * (3 + 2 * len(names)) + "|"]
    for updates in UPDATES:
        of_u = [run for run in runs.values() if run["settings"]["updates"] == updates
                and run["settings"]["problems"] == "all" and run["settings"]["rollout"] == MINIBATCH * updates]
        for what, found in (("healthy", [run for run in of_u if figures(run)["final"] >= 0.7]),
                            ("collapsed", [run for run in of_u if figures(run)["collapsed"]])):
            cells = [spread([run["rounds"][name][end] for run in found if run["rounds"].get(name)])
                     for name in names for end in (0, -1)]
            lines.append(f"| {updates} | {what} | {len(found)} | {' | '.join(cells)} |")
    return lines


# --- tables and pictures ---

COLORS = {  # a family has a colour: PMD green, RPG blue, GRPO and kin red, neither black
    "pmd_mean": "#006d2c", "pmd_part": "#41ab5d", "pmd_k25": "#a1d99b", "rpg_urkl": "#6baed6",
    "rpg_clip_urkl": "#2171b5", "grpo": "#cb181d", "dapo": "#fb6a4a", "gspo": "#fc9272", "rloo": "#000000",
}
MARKERS = dict(zip(COLORS, "osD^v>sDX"))
CLIPPED = ("pmd_k25", "rpg_clip_urkl", "grpo", "dapo", "gspo")


def labels_apart(axis, ends, x, gap=0.036):
    r"""Writes each line's name at its end, moved up or down as far as needed for `gap` (of the axis) between them."""
    low, high = axis.get_ylim()
    ends, gap = sorted(ends.items(), key=lambda item: item[1]), gap * (high - low)
    heights = [y for _, y in ends]
    for _ in range(200):
        for i in range(len(heights) - 1):
            overlap = heights[i] + gap - heights[i + 1]
            if overlap > 0:
                heights[i], heights[i + 1] = heights[i] - overlap / 2, heights[i + 1] + overlap / 2
    for (name, y), height in zip(ends, heights):
        axis.annotate("rpg_clip_urkl, both styles" if name == "rpg_clip_urkl" else name, (x * 1.15, y),
                      (x * 1.45, height), color=COLORS[name], fontsize=9, va="center", annotation_clip=False,
                      arrowprops=dict(arrowstyle="-", color=COLORS[name], lw=0.6, shrinkA=0, shrinkB=0,
                                      relpos=(0, 0.5)))


def draw_updates(found, axis, title):
    r"""Final accuracy against updates per rollout: a line per objective with its intervals, its name at the end."""
    ends, names = {}, [name for name in COLORS if any(s["line"] == name for s in found)]
    for place, name in enumerate(names):
        shift = 1.03 ** (place - len(names) / 2)  # so that intervals do not hide each other
        xs, middle, low, high = zip(*((s["x"] * shift, s["final"], s["final"] - s["low"], s["high"] - s["final"])
                                      for s in found if s["line"] == name))
        axis.errorbar(xs, middle, (low, high), color=COLORS[name], marker=MARKERS[name], markersize=5, capsize=2,
                      elinewidth=0.8, linestyle="--" if name in CLIPPED else "-")
        ends[name] = middle[-1]
    low, high = axis.get_ylim()
    axis.set(xscale="log", xlim=(0.82, 78), ylim=(math.floor(20 * low) / 20, math.ceil(20 * high) / 20), title=title,
             xlabel="optimizer steps per rollout", xticks=UPDATES,
             xticklabels=["1\neach on fresh data", "4", "16\nas in the papers", "64\nall on the same data"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.plot([], [], "k-", label="no clip")
    axis.plot([], [], "k--", label="with a clip")
    axis.legend(loc="lower left")
    labels_apart(axis, ends, max(s["x"] for s in found))


def draw_group_sizes(found, axis, title):
    r"""Final accuracy against responses per prompt: a line per objective with its intervals."""
    for line in dict.fromkeys(s["line"] for s in found):
        own, name = [s for s in found if s["line"] == line], line.split(",")[0]
        axis.errorbar([s["x"] for s in own], [s["final"] for s in own],
                      [[s["final"] - s["low"] for s in own], [s["high"] - s["final"] for s in own]],
                      color=COLORS[name], marker=MARKERS[name], capsize=3, label=name)
    axis.set(xscale="log", xticks=GROUP_SIZES, xticklabels=GROUP_SIZES, ylim=(0, 1), title=title,
             xlabel="responses per prompt, G")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    if found:
        axis.legend(loc="lower left")


def draw(runs, folder, lines=None):
    r"""Writes the pictures that there are runs for; returns {panel: file name}."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = {}

    def save(figure, panel):
        figure.savefig(folder / f"{panel}.png", dpi=110)
        plt.close(figure)
        written[panel] = f"{panel}.png"

    label = "accuracy on held-out problems after training"
    for panel, title in (("main", "1,024 sampled responses, 64 optimizer steps, each at its best learning rate"),
                         ("strength", "1,024 sampled responses, 64 optimizer steps, tau and beta tuned too"),
                         ("common", "1,024 sampled responses, 64 optimizer steps, learning rate 1e-4 for all"),
                         ("steps", "64 optimizer steps, fed by fewer and fewer sampled responses")):
        found = summaries(panel, runs, lines)
        if found and any(s["x"] == UPDATES[-1] for s in found):
            figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
            draw_updates(found, axis, title)
            axis.set_ylabel(label)
            save(figure, panel)

    rates = {(p["line"], p["x"]): rates_of(p, runs) for p in points("main")}
    if all(rates.values()):
        figure, axes = plt.subplots(1, len(UPDATES), figsize=(14, 4.5), sharey=True, layout="constrained")
        for axis, updates in zip(axes, UPDATES):
            for name in LINES:
                xs, ys = zip(*((spec["lr"], mean) for spec, mean in rates[name, updates]))
                axis.plot(xs, ys, color=COLORS[name], marker=MARKERS[name], markersize=5, label=name)
            axis.set(xscale="log", xticks=RATES, xticklabels=[f"{lr:.0e}" for lr in RATES], ylim=(0, 1),
                     xlabel="learning rate", title=f"{updates} update{'s' * (updates > 1)} per rollout")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(label)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
        save(figure, "rates")

    for panel, kinds in (("low", {"papers'": "tau 0.01, as in the authors' scripts", "tuned": "tau tuned"}),
                         ("low_rates", {f"{lr:g}": f"learning rate {lr:g}, tau 0.01" for lr in RATES[:3]})):
        found = summaries(panel, runs)
        if found:
            figure, axes = plt.subplots(1, len(kinds), figsize=(5 * len(kinds), 4.5), sharey=True, layout="constrained")
            for axis, (kind, title) in zip(axes, kinds.items()):
                draw_group_sizes([s for s in found if s["line"].endswith(f", {kind}")], axis, title)
            axes[0].set_ylabel(label)
            save(figure, panel)
    return written


def report(runs, folder, lines=None):
    r"""Writes results.md and the pictures of the runs there are."""
    pictures = draw(runs, folder, lines)
    hours = sum(line["core_seconds"] for line in runs.values()) / 3600
    text = ["# Stale data: results", "", f"Made by `python studies/staleness.py --report` from {len(runs)} runs, "
            f"{hours:.1f} core-hours. Protocol and definitions are at the top of that file. Where objectives take the "
            "same steps with one update per rollout, tau and beta are those of the one run for all of them.", "",
            *verdicts(runs)]
    for panel, title in (("main", "(a) Equal sampled responses"), ("steps", "(b) Equal optimizer steps"),
                         ("rates", "(c) Learning rates"), ("low", "(d) Low success"), ("strength", "(e) Tuned"),
                         ("common", "(f) One learning rate for all"),
                         ("low_rates", "(g) Low success, one learning rate for both")):
        text += ["", f"## {title}"]
        text += ["", f"![{title}]({pictures.get(panel)})"] * (panel in pictures)
        if panel != "rates":
            text += ["", *table(summaries(panel, runs, lines))]
        if panel in ("steps", "rates", "low", "strength"):
            text += ["", "Mean final accuracy in selection, by learning rate; bold is what was chosen:", "",
                     *selection_table("main" if panel == "rates" else panel, runs)]
    text += ["", "## Signs", "", "Of all runs on fresh rollouts of the whole task, selection too: healthy ones end at "
             "0.7 or more. A tenth of the values are below the first number, a tenth above the second.", "",
             *signs_table(runs), "", "## Collapsed runs", "", "Those of selection too. Metrics of metrics.jsonl, at "
             "the first and the last of the rounds that runs.jsonl keeps; with 64 updates there is one round, sampled "
             "before any update.", "",
             *collapse_table(runs)]
    (folder / "results.md").write_text("\n".join(text) + "\n")


# --- the command ---

def core_seconds_left(specs, runs):
    r"""What the settings of `specs` that have no line yet will take, by the finished runs with as many updates."""
    known = {updates: [line["core_seconds"] for line in runs.values() if line["settings"]["updates"] == updates]
             for updates in UPDATES}
    left = [spec for spec in specs if key(spec) not in runs]
    return len(left), sum(sum(known[u]) / len(known[u]) if known[u] else SECONDS[u]
                          for u in (spec["updates"] for spec in left))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Objectives against updates per rollout, on the embedded model.")
    parser.add_argument("--quick", action="store_true", help=f"the main panel with {', '.join(QUICK)} on three seeds, "
                        "at the learning rates that the committed runs chose; at most ten minutes on two cores")
    parser.add_argument("--only", choices=PANELS, help="one panel")
    parser.add_argument("--report", action="store_true", help="no run: tables and pictures of the runs there are")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many minutes")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a core each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of runs.jsonl (default: studies/results/staleness, of --quick "
                        "runs/staleness)")
    options = parser.parse_args(arguments)
    deadline = time.time() + 60 * options.minutes
    folder = options.out or (ROOT / "runs" / "staleness" if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    runs, seeds, lines = read_runs(folder), FINAL_SEEDS, None
    stages = [points(panel) for panel in PANELS if panel == options.only or not options.only and panel != "rates"]
    if options.only == "rates":  # the selection of the main panel, and no final run
        stages, seeds = [points("main")], ()
    if options.quick:
        seeds, lines = FINAL_SEEDS[:3], QUICK
        runs |= {k: run for k, run in read_runs(RESULTS).items() if run["settings"]["seed"] in SELECTION_SEEDS}
        stages = [[point for point in points("main") if point["line"] in QUICK]]
        if not all(chosen(point, runs) for point in stages[0]):
            parser.exit(2, "staleness.py: --quick takes the learning rates that studies/results/staleness chose, and "
                        "not all are there: run the main panel first\n")
    if not options.report:
        everything = sum(stages, [])
        guesses = [{**(chosen(point, runs) or point["candidates"][0]), "seed": seed}
                   for point in everything for seed in seeds]
        specs = {key(spec): spec for spec in selection(everything) + guesses}.values()
        left, seconds = core_seconds_left(specs, runs)
        print(f"{left} of {len(specs)} runs are left: {seconds / 3600:.1f} core-hours, "
              f"{seconds / 60 / options.workers:.0f} minutes on {options.workers} free cores", flush=True)
        with tqdm(total=left, unit="run") as bar:
            in_time = all(run_all(plan(stage), folder, runs, options.workers, deadline, bar)
                          for stage in stages
                          for plan in (selection, lambda stage: finals(stage, runs, seeds)))
        if not in_time:
            print("the time is up; the same command goes on")
    report(runs, folder, lines)
    print(f"{folder / 'results.md'}, pictures beside it")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nstaleness.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
