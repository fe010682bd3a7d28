r"""The picture of a run: curves.png from the rows of metrics.jsonl.

`python plumbing/curves.py RUN_FOLDER` draws it again, also while the run goes on.
"""

import json
import sys
from pathlib import Path


def draw_curves(rows, path, title):
    r"""Draws accuracy and reward, distance and entropy, response length, and time, against the step; writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    import matplotlib.pyplot as plt

    def series(name):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return zip(*points) if points else ([], [])

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True, constrained_layout=True)
    figure.suptitle(title)

    axis = axes[0, 0]
    axis.plot(*series("reward_mean"), color="tab:orange", alpha=0.8, label="mean reward, sampled, training problems")
    axis.plot(*series("eval_accuracy"), "o:", color="tab:blue", label="accuracy, greedy, held-out problems")
    axis.set(ylabel="reward, or fraction right")
    axis.set_ylim(min(0, axis.get_ylim()[0]), max(1.02, axis.get_ylim()[1]))  # a penalty may make rewards negative

    axis = axes[0, 1]
    axis.plot(*series("entropy"), color="tab:green", label="entropy of the policy")
    axis.plot(*series("kl_to_old"), color="tab:red", label="KL(old || new) within the step")
    if any(row.get("kl_to_reference") is not None for row in rows):
        axis.plot(*series("kl_to_reference"), color="tab:pink", label="KL(new || reference)")
    axis.set(ylabel="nats per token", yscale="log")

    axis = axes[1, 0]
    axis.plot(*series("response_length"), color="tab:purple", label="mean response length")
    axis.set(ylabel="tokens", xlabel="step", ylim=(0, None))
    twin = axis.twinx()
    twin.plot(*series("truncated_fraction"), color="tab:gray", linestyle=":", label="truncated")
    twin.plot(*series("zero_variance_fraction"), color="tab:brown", linestyle="--",
              label="groups with equal rewards")
    twin.set(ylabel="fraction", ylim=(0, 1.02))
    lines = axis.lines + twin.lines
    axis.legend(lines, [line.get_label() for line in lines], fontsize=8, loc="center right", bbox_to_anchor=(1, 0.72))

    axis = axes[1, 1]
    axis.plot(*series("seconds_rollout"), color="tab:cyan", label="rollout")
    axis.plot(*series("seconds_update"), color="tab:olive", label="update")
    axis.set(ylabel="seconds per step", xlabel="step", ylim=(0, None))

    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
        print("curves.py: give the folder of a run, one with a metrics.jsonl in it", file=sys.stderr)
        sys.exit(2)
    folder = Path(sys.argv[1])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    draw_curves([json.loads(line) for line in lines], folder / "curves.png", folder.name)
    print(folder / "curves.png")
