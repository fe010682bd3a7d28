r"""The comparison: its figures on hand-made runs, its command line, and a small one that is stopped and continued."""

import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from studies import compare
import train
from plumbing.checkpoint import checkpoints

QUICK = ["--preset", "tiny", "--device", "cpu", "--steps", "1", "--eval-size", "4", "--prompts-per-step", "2",
         "--group-size", "2", "--minibatch-size", "4", "--micro-batch-size", "4", "--max-new-tokens", "8"]


def row(step, accuracy, seconds=0.0):
    return dict(step=step, eval_accuracy=accuracy, seconds_rollout=0.9 * seconds, seconds_update=0.1 * seconds)


def hand_made(*accuracies, kl=1.0, seconds=10.0):
    r"""A run as `summarise` takes it: evaluated at every second step, `seconds` a step."""
    rows = [row(0, accuracies[0])]
    for i, accuracy in enumerate(accuracies[1:], start=1):
        rows += [row(2 * i - 1, None, seconds), row(2 * i, accuracy, seconds)]
    return {}, rows, kl


# --- figures ---

def test_mean_and_error_by_hand():
    assert compare.mean_and_error([0.25]) == (0.25, None)  # one value says nothing about its error
    assert compare.mean_and_error([1.0, 3.0]) == (2.0, 1.0)  # deviation sqrt(2), by sqrt(2)
    mean, error = compare.mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert compare.mean_and_error([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_summary_by_hand():
    s = compare.summarise("grpo", [hand_made(0.3, 0.8, 0.9, kl=2.0, seconds=10.0),
                                   hand_made(0.3, 0.7, 0.8, kl=4.0, seconds=20.0)])
    assert s == dict(
        objective="grpo", seeds=2, final_accuracy=pytest.approx(0.85), standard_error=pytest.approx(0.05),
        worst_seed=0.8, steps_to_80=3.0,  # 2 and 4
        seconds_to_80=50.0,  # 2 steps of 10 s, 4 of 20 s
        kl_moved=3.0, kl_moved_standard_error=pytest.approx(1.0))


def test_the_first_time_at_80_percent_counts():
    s = compare.summarise("a", [hand_made(0.3, 0.85, 0.7, 0.95)])
    assert s["steps_to_80"] == 2 and s["seconds_to_80"] == 20.0
    assert s["worst_seed"] == s["final_accuracy"] == 0.95
    assert s["standard_error"] is None and s["kl_moved_standard_error"] is None
    fell = compare.summarise("a", [hand_made(0.3, 0.9, 0.5)])  # the final accuracy is the last, not the best
    assert fell["final_accuracy"] == 0.5 and fell["steps_to_80"] == 2
    from_the_start = compare.summarise("a", [hand_made(0.8, 0.9)])
    assert from_the_start["steps_to_80"] == 0 and from_the_start["seconds_to_80"] == 0.0


def test_a_seed_that_never_gets_there_leaves_no_mean():
    s = compare.summarise("a", [hand_made(0.3, 0.9), hand_made(0.3, 0.79)])
    assert s["steps_to_80"] is None and s["seconds_to_80"] is None
    assert s["worst_seed"] == 0.79 and s["seeds"] == 2


def test_table_by_hand():
    worse = compare.summarise("worse", [hand_made(0.3, 0.5, kl=0.5)])
    better = compare.summarise("better", [hand_made(0.3, 0.8, 0.9, kl=2.0), hand_made(0.3, 0.7, 0.8, kl=4.0)])
    lines = compare.table([worse, better]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == 7 and set(lines[1]) <= set("| -")
    assert lines[2:] == ["| better | 0.850 ± 0.050 | 0.800 | 3 | 30 | 3.000 ± 1.000 |",
                         "| worse | 0.500 | 0.500 | - | - | 0.500 |"]
    assert compare.table([better, worse]) == compare.table([worse, better])
    assert all("nats" in lines[0] and name in lines[0] for name in ("accuracy", "worst", "steps", "seconds", "KL"))


def test_picture(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    compare.draw({"low": [hand_made(0.1, 0.2, 0.3)], "high": [hand_made(0.2, 0.4, 0.6), hand_made(0.4, 0.6, 1.0)]},
                 tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    left, right = kept[0].axes
    curves = {line.get_label(): line for line in left.lines}
    assert curves["high"].get_xdata().tolist() == [0, 2, 4]  # evaluated steps only
    assert curves["high"].get_ydata() == pytest.approx([0.3, 0.5, 0.8])  # mean over seeds
    assert curves["low"].get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    assert [text.get_text() for text in right.get_yticklabels()] == ["high", "low"]  # best first
    dots = [sorted(line.get_xdata()) for line in right.lines if line.get_marker() == "o"]
    assert dots == [[0.6, 1.0], [0.3]]
    assert left.get_legend() and all(axis.get_xlabel() for axis in (left, right)) and left.get_ylabel()
    plt.close("all")


def test_a_run_counts_when_its_model_is_there(tmp_path):
    assert compare.read_run(tmp_path / "none") is None
    (tmp_path / "config.json").write_text('{"seed": 3}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    assert compare.read_run(tmp_path) is None
    (tmp_path / "model.tmp").mkdir()  # killed while the model was written
    (tmp_path / "model.tmp" / "config.json").write_text("{}")
    assert compare.read_run(tmp_path) is None
    (tmp_path / "model.tmp").rename(tmp_path / "model")
    assert compare.read_run(tmp_path) == ({"seed": 3}, [{"step": 0}, {"step": 1}])


def test_a_model_that_equals_the_base_has_not_moved(tmp_path):
    base = ROOT / "tiny" / "model"
    shutil.copytree(base, tmp_path / "model")
    settings = dict(model=str(base), eval_data=str(ROOT / "tiny" / "test.jsonl"), max_new_tokens=24)
    assert abs(compare.kl_moved(tmp_path, settings, limit=6)) < 1e-3
    assert (tmp_path / "kl_moved.json").exists()


def test_the_distance_is_measured_on_the_run_s_device(tmp_path, monkeypatch):
    import torch

    import plumbing.model

    asked = []
    monkeypatch.setattr(plumbing.model, "device_of", lambda s: asked.append(s.device) or torch.device("cpu"))
    shutil.copytree(ROOT / "tiny" / "model", tmp_path / "model")
    settings = dict(model=str(ROOT / "tiny" / "model"), eval_data=str(ROOT / "tiny" / "test.jsonl"), max_new_tokens=2,
                    device="cuda:1")
    compare.kl_moved(tmp_path, settings, limit=2)
    assert asked == ["cuda:1"]


def test_a_model_that_differs_has_moved_in_the_right_direction(tmp_path, tiny):
    r"""Against the mean over the same samples of log p_final - log p_base, each by a plain forward pass of its own."""
    import copy

    import torch

    from gsm8k import format_prompt, load_problems
    from rollout import sample_rollouts, token_log_probs

    base, tokenizer = tiny
    final = copy.deepcopy(base)
    with torch.no_grad():
        final.lm_head.weight.mul_(1.3)  # a colder policy
    final.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = dict(model=str(ROOT / "tiny" / "model"), eval_data=str(ROOT / "tiny" / "test.jsonl"), max_new_tokens=24)
    value = compare.kl_moved(tmp_path, settings, limit=40)  # more than one batch of 32
    prompts = [format_prompt(tokenizer, p["question"]) for p in load_problems(settings["eval_data"], limit=40)]
    rollout = sample_rollouts(final, tokenizer, prompts, 1, 24, seed="kl moved")
    with torch.no_grad():
        difference = token_log_probs(final, rollout) - token_log_probs(base, rollout)
    assert value == pytest.approx(difference.sum(dim=1).mean().item(), abs=1e-3) and value > 0.1


# --- command line ---

@pytest.fixture
def in_process(monkeypatch):
    r"""train.py runs in this process, which saves the seconds of starting another; returns the list of commands."""
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        try:
            train.train(train.parse_settings(command[2:]))
        except SystemExit as stop:
            return SimpleNamespace(returncode=stop.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(compare, "draw", lambda results, path: None)
    return commands


def refused(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as stop:
        compare.main([str(argument) for argument in arguments])
    assert stop.value.code == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("compare.py:")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, in_process):
    out = ["--out", tmp_path / "new"]
    assert "'ppo2'" in refused(capsys, "--objectives", "grpo,ppo2", *out)
    assert "''" in refused(capsys, "--objectives", "grpo,", *out)
    assert "--seeds" in refused(capsys, "--objectives", "grpo", "--seeds", "0", *out)
    assert "many" in refused(capsys, "--seeds", "many", *out)
    assert not in_process and not (tmp_path / "new").exists()


@pytest.mark.parametrize("flag", ["--seed 5", "--seed=5", "--objective rloo", "--resume runs/x"])
def test_flags_that_this_program_gives_itself_are_refused(tmp_path, capsys, in_process, flag):
    r"""--seed 5 would give every seed of an objective the same seed, and a standard error of 0."""
    message = refused(capsys, "--objectives", "grpo", "--seeds", "1", "--out", tmp_path / "new", *QUICK, *flag.split())
    assert flag.split("=")[0].split()[0] in message
    assert not in_process


def test_other_flags_in_the_same_folder_are_refused_once_there_is_a_run(tmp_path, capsys, in_process):
    arguments = ["--objectives", "rloo", "--seeds", "1", "--out", str(tmp_path / "c")]
    message = refused(capsys, *arguments, *QUICK, "--no-such-flag")
    assert "ended with status 2" in message and "--no-such-flag" in message
    compare.main([*arguments, *QUICK])  # a mistake can be put right, as nothing had been run with it
    table = (tmp_path / "c" / "table.md").read_text()
    message = refused(capsys, *arguments, *QUICK, "--lr", "1e-5")
    assert str(tmp_path / "c") in message and "another --out" in message
    assert len(in_process) == 2 and (tmp_path / "c" / "table.md").read_text() == table


def test_what_is_passed_on(tmp_path, monkeypatch):
    r"""The command of a new run, of one that goes on, and of one that is finished: none."""
    commands = []
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(
        run=lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0), DEVNULL=None))
    compare.run_one(tmp_path / "run", "grpo", 2, ["--lr", "1e-5"])
    program = [sys.executable, str(ROOT / "train.py")]
    assert commands == [
        [*program, "--objective", "grpo", "--seed", "2", "--out", str(tmp_path / "run"), "--lr", "1e-5"]]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    compare.run_one(tmp_path / "run", "grpo", 2, ["--lr", "1e-5"])
    assert commands[1:] == [[*program, "--resume", str(tmp_path / "run")]]
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    compare.run_one(tmp_path / "run", "grpo", 2, ["--lr", "1e-5"])
    assert len(commands) == 2


def test_a_run_that_fails_ends_the_comparison(tmp_path, capsys, in_process, monkeypatch):
    monkeypatch.setattr(train, "train", lambda settings: sys.exit(1))
    message = refused(capsys, "--objectives", "grpo,rloo", "--out", tmp_path / "c", *QUICK, status=1)
    assert "--objective grpo" in message and "status 1" in message and "repeat the command" in message
    assert len(in_process) == 1 and not (tmp_path / "c" / "table.md").exists()


def test_a_comparison_without_evaluations_is_refused(tmp_path, capsys, in_process):
    run = tmp_path / "c" / "grpo-seed0"  # as such a run leaves it
    (run / "model").mkdir(parents=True)
    for name, text in (("config.json", "{}"), ("model/config.json", "{}"),
                       ("metrics.jsonl", json.dumps(row(0, None)) + "\n" + json.dumps(row(1, None, 1.0)) + "\n")):
        (run / name).write_text(text)
    arguments = ["--objectives", "grpo", "--seeds", "1", "--out", tmp_path / "c", "--eval-every", "0"]
    assert "--eval-every" in refused(capsys, *arguments) and not in_process


# --- a comparison that is really run, stopped, and continued ---

def metrics(out):
    return {path.parent.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*/metrics.jsonl")}


@pytest.mark.slow
def test_a_small_comparison_is_run_stopped_and_continued(tmp_path, capsys, in_process, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "draw", lambda results, path: drawn.append(list(results)) or path.write_bytes(b""))
    out = tmp_path / "compare"
    arguments = ["--objectives", "pmd_mean,grpo,pmd_mean", "--seeds", "1", "--out", str(out), *QUICK]
    compare.main(arguments)
    names = ["pmd_mean-seed0", "grpo-seed0"]
    assert [command[command.index("--objective") + 1] for command in in_process] == ["pmd_mean", "grpo"]  # each once
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(names)
    printed = capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert table in printed and len(table.splitlines()) == 4
    assert drawn[-1] == ["pmd_mean", "grpo"] and (out / "curves.png").exists()
    figures = json.loads((out / "table.json").read_text())
    assert {r["objective"]: r["seeds"] for r in figures["rows"]} == {"pmd_mean": 1, "grpo": 1}
    assert [s["objective"] for s in figures["settings"]] == ["pmd_mean", "grpo"]
    assert all(s["steps"] == 1 and s["seed"] == 0 and s["eval_size"] == 4 for s in figures["settings"])
    for r in figures["rows"]:
        last = json.loads((out / f"{r['objective']}-seed0" / "metrics.jsonl").read_text().splitlines()[-1])
        assert r["final_accuracy"] == r["worst_seed"] == last["eval_accuracy"]
        assert math.isfinite(r["kl_moved"]) and abs(r["kl_moved"]) < 0.5  # one step with a small learning rate

    before = metrics(out)
    compare.main(arguments)  # finished: nothing is run again
    assert len(in_process) == 2 and metrics(out) == before and (out / "table.md").read_text() == table

    # One run is interrupted before its model is written; it goes on, by the real program, and the other stays.
    shutil.rmtree(out / "grpo-seed0" / "model")
    (out / "grpo-seed0" / "kl_moved.json").write_text("99.0")  # of the model that was there
    calls = []
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(
        run=lambda command, **rest: calls.append(command) or subprocess.run(command, **rest),
        DEVNULL=subprocess.DEVNULL))
    compare.main(arguments)
    assert [command[2:] for command in calls] == [["--resume", str(out / "grpo-seed0")]]
    assert (out / "grpo-seed0" / "model" / "model.safetensors").exists()
    after = metrics(out)
    assert after["pmd_mean-seed0"] == before["pmd_mean-seed0"] and after["grpo-seed0"][1] == before["grpo-seed0"][1]
    assert [folder.name for folder in checkpoints(out / "grpo-seed0")] == ["checkpoint-000001"]
    assert compare.read_run(out / "grpo-seed0")[0]["objective"] == "grpo"
    assert (out / "table.md").read_text() == table  # the same run, so the same figures: its KL was measured again
