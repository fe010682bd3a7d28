r"""Compares objectives over seeds: `python studies/compare.py --objectives pmd_mean,grpo,rpg_urkl --seeds 3`.

Runs `train.py` once for each objective and seed, one after the other, with that objective's own defaults. Flags that
this program does not know (`--steps 30 --lr 1e-4`) go to every run. It can be stopped at any time. The same command
then goes on with the run that was stopped, and repeats no finished run.

--out then has a folder for each run (see `train.py`), and
    table.md    a line for each objective
    table.json  the same figures, with the settings of every run
    curves.png  held-out accuracy against the step, mean over seeds, and the final accuracies

The columns, over the seeds of an objective:
    final accuracy  fraction of held-out problems answered right, greedily, at the last step: mean +- standard error
    worst seed      the lowest of these
    steps to 80 %   the first evaluated step with an accuracy of 0.80 or more: mean; "-" if a seed never gets there
    seconds to 80 % time spent in sampling and updating until then, without evaluations: mean
    KL moved        KL(pi_final || pi_base) in nats per response: mean +- standard error. It is estimated from one
                    response of pi_final, at temperature 1, to each of 256 held-out prompts
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from objectives import OBJECTIVES  # noqa: E402


def read_run(folder):
    r"""(settings, rows) of a finished run, else None. A run is finished when its model has been written."""
    if not (folder / "model" / "config.json").exists():
        return None
    settings = json.loads((folder / "config.json").read_text())
    return settings, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_one(folder, objective, seed, extra):
    r"""Starts the run, or goes on with it; does nothing if it is finished. Exits with the run's status if it fails."""
    if read_run(folder):
        return
    command = [sys.executable, str(ROOT / "train.py")]
    if (folder / "config.json").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--objective", objective, "--seed", str(seed), "--out", str(folder), *extra]
    (folder / "kl_moved.json").unlink(missing_ok=True)  # of another model
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status:
        print(f"compare.py: {' '.join(command[1:])} ended with status {status}; repeat the command to go on",
              file=sys.stderr)
        sys.exit(status)


def kl_moved(folder, settings, limit=256):
    r"""KL(pi_final || pi_base), nats per response: the mean of log pi_final(y) - log pi_base(y) over y ~ pi_final."""
    path = folder / "kl_moved.json"
    if path.exists():
        return json.loads(path.read_text())
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gsm8k import format_prompt, load_problems
    from plumbing.model import device_of
    from plumbing.settings import Settings
    from rollout import sample_rollouts
    from scoring import token_log_probs

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    device = device_of(Settings(**settings))
    final, base = (AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).to(device)
                   for source in (folder / "model", settings["model"]))
    prompts = [format_prompt(tokenizer, p["question"]) for p in load_problems(settings["eval_data"], "test", limit)]
    rollout = sample_rollouts(final, tokenizer, prompts, 1, settings["max_new_tokens"], seed="kl moved")
    with torch.no_grad():
        base_log_probs = torch.cat([
            token_log_probs(base.eval(), part).sum(dim=1)
            for part in map(rollout.select, torch.arange(len(prompts)).split(32))
        ])  # [N]
    value = (rollout.log_probs.sum(dim=1) - base_log_probs).mean().item()
    path.write_text(json.dumps(value))
    return value


def mean_and_error(values):
    r"""Mean and standard error of the mean. A single value has no known error: None."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def summarise(objective, runs):
    r"""One row of the table from a list of (settings, rows, kl_moved)."""
    accuracy, error = mean_and_error([rows[-1]["eval_accuracy"] for _, rows, _ in runs])
    kl, kl_error = mean_and_error([kl for *_, kl in runs])
    steps, seconds = [], []
    for _, rows, _ in runs:
        there = [row["step"] for row in rows if (row["eval_accuracy"] or 0) >= 0.8]
        if there:
            steps.append(there[0])
            seconds.append(sum(row["seconds_rollout"] + row["seconds_update"] for row in rows[1:]
                               if row["step"] <= there[0]))
    reached = len(steps) == len(runs)
    return dict(
        objective=objective, seeds=len(runs), final_accuracy=accuracy, standard_error=error,
        worst_seed=min(rows[-1]["eval_accuracy"] for _, rows, _ in runs),
        steps_to_80=sum(steps) / len(steps) if reached else None,
        seconds_to_80=sum(seconds) / len(seconds) if reached else None,
        kl_moved=kl, kl_moved_standard_error=kl_error,
    )


def table(summaries):
    r"""The summaries as a Markdown table, best first."""
    lines = ["| objective | final accuracy | worst seed | steps to 80 % | seconds to 80 % | KL moved (nats) |",
             "| --- | --- | --- | --- | --- | --- |"]
    for s in sorted(summaries, key=lambda s: -s["final_accuracy"]):
        steps = "-" if s["steps_to_80"] is None else f"{s['steps_to_80']:.0f}"
        seconds = "-" if s["seconds_to_80"] is None else f"{s['seconds_to_80']:.0f}"
        error, kl_error = ("" if s[name] is None else f" ± {s[name]:.3f}"
                           for name in ("standard_error", "kl_moved_standard_error"))
        lines.append(f"| {s['objective']} | {s['final_accuracy']:.3f}{error} | {s['worst_seed']:.3f} | "
                     f"{steps} | {seconds} | {s['kl_moved']:.3f}{kl_error} |")
    return "\n".join(lines) + "\n"


def draw(results, path):
    r"""Draws held-out accuracy against the step, mean and range over seeds; and final accuracies, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted(results, key=lambda name: -sum(rows[-1]["eval_accuracy"] for _, rows, _ in results[name]))
    colors = dict(zip(names, plt.get_cmap("tab20").colors))
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 0.25 * len(names) + 3.5), width_ratios=(3, 2),
                                         constrained_layout=True)
    for place, name in enumerate(names):
        curves = [[(row["step"], row["eval_accuracy"]) for row in rows if row["eval_accuracy"] is not None]
                  for _, rows, _ in results[name]]
        steps = [step for step, _ in curves[0]]
        values = list(zip(*[[accuracy for _, accuracy in curve] for curve in curves]))
        left.plot(steps, [sum(v) / len(v) for v in values], color=colors[name], label=name, marker=".")
        left.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colors[name], alpha=0.12)
        finals = [curve[-1][1] for curve in curves]
        right.plot(finals, [place] * len(finals), "o", color=colors[name], alpha=0.7)
        right.plot(sum(finals) / len(finals), place, "|", color="black", markersize=14)
    left.set(xlabel="step", ylabel="accuracy on held-out problems (greedy)",
             title="mean over seeds; shaded: lowest to highest")
    left.legend(fontsize=8)
    right.set(yticks=range(len(names)), xlabel="final accuracy", title="final accuracy: a dot a seed, | the mean")
    right.set_yticklabels(names)
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Run objectives over seeds and compare them; other flags go on to train.py.", allow_abbrev=False)
    parser.add_argument("--objectives", default="pmd_mean,pmd_part,grpo,rpg_urkl", help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each objective, with seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the comparison")
    parser.error = lambda message: (print(f"compare.py: {message}", file=sys.stderr), sys.exit(2))
    known, extra = parser.parse_known_args(arguments)
    objectives = list(dict.fromkeys(known.objectives.split(",")))
    unknown = [name for name in objectives if name not in OBJECTIVES]
    if unknown:
        parser.error(f"unknown objective {unknown[0]!r}: choose from {', '.join(OBJECTIVES)}")
    if known.seeds < 1:
        parser.error("--seeds must be at least 1")

    for flag in extra:
        if flag.split("=")[0] in ("--seed", "--objective", "--resume"):
            parser.error(f"{flag.split('=')[0]} is given by this program: leave it out; see --objectives and --seeds")

    known.out.mkdir(parents=True, exist_ok=True)
    flags = known.out / "flags.json"  # runs with different settings do not belong in one table
    if flags.exists() and json.loads(flags.read_text()) != extra and any(known.out.glob("*-seed*/config.json")):
        parser.error(f"{known.out} holds a comparison with other flags, {flags.read_text()}: use another --out")
    flags.write_text(json.dumps(extra))
    results = {}
    for seed in range(known.seeds):  # seed by seed, so that an early stop leaves a comparison too
        for objective in objectives:
            folder = known.out / f"{objective}-seed{seed}"
            run_one(folder, objective, seed, extra)
            settings, rows = read_run(folder)
            if rows[-1]["eval_accuracy"] is None:
                parser.error("there is nothing to compare without evaluations: leave out --eval-every 0")
            kl = kl_moved(folder, settings)
            results.setdefault(objective, []).append((settings, rows, kl))
            print(f"{objective}, seed {seed}: accuracy {rows[0]['eval_accuracy']:.3f} -> "
                  f"{rows[-1]['eval_accuracy']:.3f}, moved {kl:.2f} nats")
            summaries = [summarise(name, runs) for name, runs in results.items()]
            (known.out / "table.md").write_text(table(summaries))
            (known.out / "table.json").write_text(json.dumps(
                dict(rows=summaries, settings=[s for runs in results.values() for s, *_ in runs]), indent=2) + "\n")
            draw(results, known.out / "curves.png")
    print(f"\n{table(summaries)}\n{known.out / 'table.md'}  {known.out / 'table.json'}  {known.out / 'curves.png'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ncompare.py: stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
