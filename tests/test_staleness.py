r"""The study of stale data: its definitions on hand-made curves, its plan, that it goes on, and its report."""

import json

import pytest
import torch

from gsm8k import format_prompt
from objectives import OBJECTIVES
from rollout import sample_rollouts
from studies import staleness
from studies.staleness import (
    FINAL_SEEDS, LINES, MINIBATCH, PANELS, RATES, SELECTION_SEEDS, STEPS, STRENGTHS, UPDATES, candidate, chosen,
    figures, finals, key, points, problems_of, read_runs, run_all, selection, settings_of, summaries, verdicts,
)

EVERY_PANEL = [panel for panel in PANELS if panel != "rates"]


def line(spec, final=0.5):
    r"""A line of runs.jsonl as `one_run` makes it, with a given final accuracy."""
    return dict(settings=spec, curve=[[0, 0.3], [16, 0.4], [32, 0.4], [48, 0.4], [64, final]], rounds={},
                seconds=10.0, core_seconds=9.0)


class Bar:
    def update(self):
        pass


# --- definitions ---

def curve(*accuracies):
    return figures(dict(curve=list(zip((0, 16, 32, 48, 64), accuracies))))


def test_definitions_by_hand():
    got = curve(0.3, 0.9, 0.5, 0.7, 0.6)
    assert got["final"] == 0.6 and got["best"] == 0.9 and got["time_to_90"] == 16 and not got["collapsed"]
    assert got["drawdown"] == pytest.approx(0.4)  # from 0.9 to 0.5, not to the last
    assert got["area"] == pytest.approx((0.15 + 0.9 + 0.5 + 0.7 + 0.3) / 4)
    rising = curve(0.3, 0.4, 0.5, 0.6, 0.95)
    assert rising["drawdown"] == 0 and rising["time_to_90"] == 64 and not rising["collapsed"]
    assert curve(0.3, 0.5, 0.8, 0.89, 0.8)["time_to_90"] is None


@pytest.mark.parametrize("accuracies, collapsed", [
    ((0.3, 0.4, 0.4, 0.35, 0.29), True),  # below the base model
    ((0.3, 0.4, 0.4, 0.35, 0.30), False),
    ((0.3, 0.8, 0.8, 0.6, 0.39), True),  # below half its best
    ((0.3, 0.8, 0.8, 0.6, 0.41), False),
])
def test_what_a_collapse_is(accuracies, collapsed):
    assert curve(*accuracies)["collapsed"] == collapsed


def test_a_run_that_ended_early_counts_to_the_end():
    got = figures(dict(curve=[(0, 0.3), (16, 0.5), (64, 0.0)]))
    assert got["collapsed"] and got["final"] == 0 and got["drawdown"] == 0.5
    assert got["area"] == pytest.approx((0.4 * 16 + 0.25 * 48) / 64)
    assert figures(dict(curve=[(0, 0.2), (8, 0.4)]))["area"] == pytest.approx(0.3)


# --- the plan ---

@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_no_seed_and_no_problem_is_in_both_selection_and_final(panel):
    found = points(panel)
    first = selection(found)
    runs = {key(spec): line(spec) for spec in first}
    last = finals(found, runs, FINAL_SEEDS)
    assert {spec["seed"] for spec in first} <= set(SELECTION_SEEDS)
    assert {spec["seed"] for spec in last} == set(FINAL_SEEDS) and not set(SELECTION_SEEDS) & set(FINAL_SEEDS)
    assert len({key(spec) for spec in first + last}) == len(first) + len(last)
    assert 0 < len(last) <= len(found) * len(FINAL_SEEDS)


@pytest.mark.parametrize("kind", ["all", "low"])
def test_held_out_problems_are_enough_for_both_and_no_training_problems(kind):
    test, training = ([p["question"] for p in problems_of(kind, split)] for split in ("test", "train"))
    assert len(set(test)) == len(test) >= 2 * staleness.PROBLEMS and not set(test) & set(training)


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_every_run_has_the_same_budget(panel):
    responses = set()
    for spec in ({**spec, "seed": 0} for point in points(panel) for spec in point["candidates"]):
        settings = settings_of(spec, "unused")
        sampled = settings.steps * settings.prompts_per_step * settings.group_size
        assert settings.steps * settings.epochs * (spec["rollout"] // settings.minibatch_size) == STEPS
        assert spec["rollout"] * settings.epochs == spec["updates"] * MINIBATCH and settings.lr_decay_steps == 0
        responses.add((spec["updates"], sampled))
    if panel == "steps":
        assert responses == {(16, 256), (64, 64)}
    else:
        assert {sampled for _, sampled in responses} == {STEPS * MINIBATCH}


@pytest.mark.parametrize("objective, other", staleness.SAME_ON_POLICY.items())
def test_on_policy_they_take_the_same_step(tiny, objective, other):
    r"""Gradients, those longer than 1 scaled down to it as max_grad_norm does; and not the same off policy."""
    model, tokenizer = tiny
    prompts = [format_prompt(tokenizer, problem["question"]) for problem in problems_of("all", "train")[:2]]
    rollout = sample_rollouts(model, tokenizer, prompts, 8, 40, seed=0)
    rewards = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0])

    def step(name):
        settings = settings_of({**candidate(name, 1e-4, 4), "seed": 0}, "unused")
        rollout.advantages = OBJECTIVES[name].advantages(rewards, rollout, settings)
        staleness.train.backward(model, OBJECTIVES[name], rollout, torch.arange(16), settings)
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        model.zero_grad()
        return gradient / gradient.norm().clamp(min=1)

    wanted = step(other)
    assert (step(objective) - wanted).norm() < 1e-3 * wanted.norm()
    rollout.log_probs = rollout.log_probs + rollout.response_mask * torch.linspace(-0.5, 0.5, 16)[:, None]
    wanted = step(other)
    assert (step(objective) - wanted).norm() > 0.01 * wanted.norm()


def test_objectives_are_as_the_header_says():
    dapo = settings_of({**candidate("dapo", 1e-4, 4), "seed": 0}, "unused")
    assert not dapo.filter_groups and not dapo.overlong_penalty and (dapo.eps_low, dapo.eps_high) == (0.2, 0.28)
    assert settings_of({**candidate("pmd_mean", 1e-4, 4), "seed": 0}, "unused").tau == 0.01
    assert settings_of({**candidate("rpg_urkl", 1e-4, 4), "seed": 0}, "unused").beta == 1e-4
    assert settings_of({**candidate("grpo", 1e-4, 4), "seed": 0}, "unused").beta == 1e-4
    low = settings_of({**candidate("pmd_part", 1e-4, 16, 1.0, None, 2, "low"), "seed": 0}, "unused")
    assert low.tau == 1.0 and low.group_size == 2 and low.temperature == 0.5


def test_the_best_mean_is_chosen_and_nothing_before_all_runs_are_there():
    point = points("main")[0]
    accuracies = {RATES[0]: (0.5, 0.5), RATES[1]: (0.9, 0.2), RATES[2]: (0.6, 0.6), RATES[3]: (0.6, 0.6)}
    runs = {}
    for spec in point["candidates"]:
        for seed, final in zip(SELECTION_SEEDS, accuracies[spec["lr"]]):
            assert chosen(point, runs) is None and finals([point], runs, FINAL_SEEDS) == []
            runs[key({**spec, "seed": seed})] = line({**spec, "seed": seed}, final)
    assert chosen(point, runs)["lr"] == RATES[2]  # the first of two equals
    # Final runs, however good, do not enter the choice.
    other = {**point["candidates"][0], "seed": FINAL_SEEDS[0]}
    runs[key(other)] = line(other, 1.0)
    assert chosen(point, runs)["lr"] == RATES[2]


# --- the runs ---

def test_it_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    specs = selection(points("main"))[:6]
    ran = []
    monkeypatch.setattr(staleness, "one_run", lambda spec: ran.append(spec) or line(spec))
    runs = read_runs(tmp_path)
    assert runs == {} and not run_all(specs[:3], tmp_path, runs, 1, 0.0, Bar()) and ran == []  # no time
    assert run_all(specs[:3], tmp_path, runs, 1, float("inf"), Bar()) and ran == specs[:3]
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write(json.dumps(line(specs[3]))[:50])  # killed while it wrote
    runs = read_runs(tmp_path)
    assert list(runs) == [key(spec) for spec in specs[:3]]
    assert run_all(specs, tmp_path, runs, 1, float("inf"), Bar()) and ran == specs
    assert read_runs(tmp_path) == runs and len(runs) == 6


def test_quick_runs_the_main_panel_with_the_rates_that_were_chosen(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(staleness, "one_run", lambda spec: ran.append(spec) or line(spec))
    arguments = ["--quick", "--workers", "1", "--out", str(tmp_path)]
    staleness.main([*arguments, "--minutes", "0"])
    assert ran == [] and "the same command goes on" in capsys.readouterr().out
    staleness.main(arguments)
    committed = read_runs(staleness.RESULTS)
    wanted = {key({**chosen(point, committed), "seed": seed}) for point in points("main")
              if point["line"] in staleness.QUICK for seed in FINAL_SEEDS[:3]}
    assert len(ran) == len(wanted) == 45 and {key(spec) for spec in ran} == wanted
    assert {path.name for path in tmp_path.glob("*.png")} >= {"main.png"}


def test_a_run_is_evaluated_within_its_rollout_and_leaves_nothing(tmp_path, monkeypatch):
    r"""Four updates of one rollout, evaluated after every second one, on a few problems."""
    monkeypatch.setattr(staleness, "EVALUATE_EVERY", 2)
    monkeypatch.setattr(staleness, "PROBLEMS", 8)
    monkeypatch.setattr(staleness.Watched, "base", {})
    monkeypatch.setattr(staleness.tempfile, "tempdir", str(tmp_path))
    spec = {**candidate("pmd_mean", 1e-3, 4, rollout=16, group_size=4), "minibatch": 4, "steps": 4, "seed": 0}
    asked, plain_accuracy = [], staleness.Watched.accuracy
    monkeypatch.setattr(staleness.Watched, "accuracy", lambda run: asked.append(
        {problem["question"] for problem in run.held_out}) or plain_accuracy(run))
    got = staleness.one_run(spec)
    assert [step for step, _ in got["curve"]] == [0, 2, 4] and got["settings"] == spec
    assert all(0 <= accuracy <= 1 for _, accuracy in got["curve"]) and got["rounds"]["step"] == [1]
    assert json.loads(json.dumps(got, allow_nan=False))
    assert not list(tmp_path.glob("tmp*"))

    plain = staleness.train.learning_rate
    monkeypatch.setattr(staleness.train, "learning_rate", lambda *_: plain(*_) * float("nan"))  # weights become nan
    assert staleness.one_run({**spec, "seed": SELECTION_SEEDS[0]})["curve"][-1] == (4, 0.0)
    assert len(asked[0]) == len(asked[-1]) == 8 and not asked[0] & asked[-1]  # other problems in selection


# --- the report ---

def made_up(panels, value):
    r"""Runs of whole panels: `value(point, spec, seed)` is the final accuracy of each."""
    runs = {}
    for panel in panels:
        for point in points(panel):
            for spec in point["candidates"]:
                for seed in SELECTION_SEEDS + FINAL_SEEDS:
                    runs[key({**spec, "seed": seed})] = line({**spec, "seed": seed}, value(point, spec, seed))
    return runs


def test_verdicts_by_hand():
    def value(point, spec, seed):  # pmd_mean above grpo at 64 updates alone; rpg_urkl below rloo throughout
        high = spec["objective"] == "pmd_mean" and spec["updates"] == 64 or spec["objective"] == "rloo"
        return 0.8 + 0.01 * seed if high else 0.5 + 0.011 * seed

    rows = {tuple(row.split(" | ")[:2]): row for row in verdicts(made_up(["main"], value))}
    assert rows["| pmd_mean above grpo", "main"].endswith("| holds in part |")
    assert "64: +0.298" in rows["| pmd_mean above grpo", "main"]  # the mean over seeds of 0.3 - 0.001 seed
    assert rows["| rpg_urkl above rloo", "main"].endswith("| reversed |")
    assert rows["| rpg_clip_urkl above rpg_urkl", "main"].endswith("| not seen |")
    assert rows["| pmd_mean, papers' above pmd_part, papers'", "low"].endswith("| not run |")


def test_panels_share_points_with_the_main_one():
    runs = made_up(EVERY_PANEL, lambda point, spec, seed: 0.5)
    for panel, lines in (("main", STRENGTHS), ("steps", LINES), ("strength", LINES), ("common", LINES)):
        assert {(s["line"], s["x"]) for s in summaries(panel, runs)} == {(n, u) for n in lines for u in UPDATES}


@pytest.mark.parametrize("panel", ["common", "low_rates"])
def test_panels_with_one_rate_select_nothing(panel):
    assert all(len(point["candidates"]) == 1 for point in points(panel)) and selection(points(panel)) == []
    assert len(finals(points(panel), {}, FINAL_SEEDS)) > 0


def test_report_of_what_there_is(tmp_path, capsys):
    def value(point, spec, seed):
        return 0.4 + 0.01 * seed + 0.1 * (spec["lr"] == RATES[1])

    with open(tmp_path / "runs.jsonl", "w") as file:
        for run in made_up(["main"], value).values():
            file.write(json.dumps(run) + "\n")
    staleness.main(["--report", "--out", str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert {path.name for path in tmp_path.glob("*.png")} >= {"main.png", "rates.png"}
    assert "![(a) Equal sampled responses](main.png)" in text
    row = next(row for row in text.splitlines() if row.startswith("| gspo | 16 |"))
    assert "| 0.0001 | - | 0.520 [" in row and "| 0 of 5 | - |" in row  # seeds 0 to 4 at the learning rate chosen
    assert "results.md" in capsys.readouterr().out


def test_table_of_collapsed_runs():
    spec = {**candidate("pmd_part", 4e-4, 4), "seed": 3}
    names = ("reward_mean", "entropy", "kl_to_old", "response_length", "truncated_fraction", "grad_norm")
    rounds = dict({name: [1.0, 9.0, 2.0] for name in names}, kl_to_old=[0.5], entropy=[None, 0.25])
    bad, good = {**line(spec, 0.01), "rounds": rounds}, line({**spec, "seed": 4}, 0.5)
    rows = staleness.collapse_table({"a": good, "b": bad})
    assert rows[2:] == ["| pmd_part | 4 | 0.0004 | 0.01 | 8 | 3 | 0.400 | 0.010 | 1 to 2 | - to 0.25 | 0.5 | 1 to 2 | "
                        "1 to 2 | 1 to 2 |"]


def test_table_of_signs():
    names = ("kl_to_old", "entropy", "reward_mean", "response_length", "truncated_fraction")
    runs = {}
    for seed in range(20):
        final = 0.8 if seed < 10 else 0.1
        spec = {**candidate("grpo", 1e-4, 4), "seed": seed}
        runs[seed] = {**line(spec, final), "rounds": {name: [0.1 * seed, 9.0, None] for name in names}}
    rows = staleness.signs_table(runs)
    assert rows[4].startswith("| 4 | healthy | 10 | 0.1 to 0.8 | - | 0.1 to 0.8 | - |")
    assert rows[5].startswith("| 4 | collapsed | 10 | 1.1 to 1.8 | - |") and rows[6].startswith("| 16 | healthy | 0 | - |")


def test_report_of_nothing(tmp_path):
    staleness.main(["--report", "--out", str(tmp_path)])
    assert "not run" in (tmp_path / "results.md").read_text() and not list(tmp_path.glob("*.png"))
