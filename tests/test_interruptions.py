r"""Nothing is lost: kills at any moment, Ctrl-C, full disks, damaged checkpoints, gradients that are not finite."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from test_train import QUICK, finished, read_metrics, run, without_timings  # noqa: F401 (a fixture)

from plumbing import checkpoint
import plumbing.run
import train as program


class Killed(BaseException):
    r"""Passes every `except Exception`, as a kill would, and leaves on disk what was there."""


def start(*arguments):
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})


def assert_same_run(folder, whole):
    assert without_timings(read_metrics(folder)) == without_timings(read_metrics(whole))
    a, b = ((path / "model" / "model.safetensors").read_bytes() for path in (folder, whole))
    assert a == b


# Each call that changes the disk while a checkpoint is written, and what it is called with when it is killed there.
STAGES = [("shutil", "rmtree"), ("torch", "save"), (None, "write_json"), ("os", "fsync"), ("os", "rename")]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    r"""The folder of a run of two steps with a checkpoint after each, never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "two_steps"
    run("--steps", 2, "--save-every", 1, "--out", folder)
    return folder


@pytest.mark.parametrize("module, name", STAGES)
def test_killed_while_a_checkpoint_is_written(tmp_path, two_steps, monkeypatch, module, name):
    out = tmp_path / "run"
    owner = getattr(checkpoint, module) if module else checkpoint
    real, saving = getattr(owner, name), []
    save = plumbing.run.save_checkpoint

    def save_and_count(*arguments):
        saving.append(arguments[1])
        save(*arguments)

    def killed(*arguments, **kwargs):
        if saving and saving[-1] == 2:  # in the midst of the second checkpoint
            raise Killed
        return real(*arguments, **kwargs)

    monkeypatch.setattr(plumbing.run, "save_checkpoint", save_and_count)
    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(Killed):
        run("--steps", 2, "--save-every", 1, "--out", out)
    monkeypatch.undo()
    assert [path.name for path in checkpoint.checkpoints(out)] == ["checkpoint-000001"]
    run("--resume", out, quick=False)
    assert_same_run(out, two_steps)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, finished):  # noqa: F811
    out, chance = tmp_path / "run", random.Random(0)
    process = start(*QUICK, "--steps", 4, "--save-every", 2, "--out", out)
    for attempt in range(3):
        deadline = time.time() + 120  # the start, of unknown length, is waited for; a random part of the run follows
        while not (out / "metrics.jsonl").exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start("--resume", out)
        time.sleep(chance.uniform(2, 5) if attempt < 2 else 0)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 2:  # the kill came after the last step
        assert "complete at step 4" in errors
    else:
        assert process.returncode == 0, errors
    assert_same_run(out, finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, finished, number):  # noqa: F811
    out = tmp_path / "run"
    process = start(*QUICK, "--steps", 4, "--save-every", 0, "--out", out)
    deadline = time.time() + 120
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and f"--resume {out}" in errors and "Traceback" not in errors
    assert len(checkpoint.checkpoints(out)) == 1 and not (out / "model").exists()
    run("--resume", out, quick=False)
    assert_same_run(out, finished)


# --- a disk that is full, a folder that cannot be written, a checkpoint that is damaged or another's ---

@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_a_full_disk_is_one_line(tmp_path):
    out = tmp_path / "run"
    run("--steps", 1, "--save-every", 1, "--out", out)
    kept = {path: path.read_bytes() for path in (out / "checkpoint-000001").rglob("*") if path.is_file()}
    # Files of 2 MB at most.
    command = f"ulimit -f 2000; exec {sys.executable} {ROOT / 'train.py'} --resume {out} --steps 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]
    assert done.returncode == 2 and len(lines) == 1 and str(out) in lines[0] and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    run("--resume", out, "--steps", 2, quick=False)
    assert [row["step"] for row in read_metrics(out)] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/proc/nowhere/run", "a file/run"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    (tmp_path / "a file").write_text("kept")
    process = start(*QUICK, "--steps", 1, "--eval-every", 0, "--out", tmp_path / place)
    _, errors = process.communicate(timeout=120)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert process.returncode == 2 and len(lines) == 1 and "cannot write" in lines[0] and place in lines[0]
    assert (tmp_path / "a file").read_text() == "kept"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_model(folder, tokenizer):
    from conftest import small_model

    small_model("qwen2", tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("damage", [
    lambda folder, tokenizer: truncate(folder / "optimizer.pt"),
    lambda folder, tokenizer: truncate(folder / "model.safetensors"),
    lambda folder, tokenizer: truncate(folder / "state.json"),
    lambda folder, tokenizer: (folder / "state.json").write_text('{"step": 2}'),
    lambda folder, tokenizer: (folder / "optimizer.pt").unlink(),
    lambda folder, tokenizer: (folder / "optimizer.pt").write_bytes(b"cposix\nsystem\n(S'true'\ntR."),
    of_another_model,
])
def test_a_damaged_or_foreign_checkpoint_is_one_line(tmp_path, finished, tokenizer, capsys, damage):  # noqa: F811
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "model")
    damage(checkpoint.checkpoints(out)[0], tokenizer)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("--resume", out, "--steps", 6, quick=False)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error and "checkpoint-000004" in error
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path for path in out.rglob("*") if path.is_file()} == set(kept)


# --- gradients that are not finite, and steps that teach nothing ---

def broken_now_and_then(monkeypatch, broken):
    r"""The loss of the updates whose number is in `broken` is NaN."""
    real, count = program.aggregate, []

    def aggregate(*arguments, **kwargs):
        count.append(None)
        return real(*arguments, **kwargs) * (float("nan") if len(count) - 1 in broken else 1.0)

    monkeypatch.setattr(program, "aggregate", aggregate)


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path, monkeypatch):
    broken_now_and_then(monkeypatch, {1, 2})
    rows = run("--steps", 3, "--save-every", 0, "--micro-batch-size", 8, "--tokens-per-microbatch", 10**6,
               "--out", tmp_path / "run")
    assert [row["skipped_updates"] for row in rows[1:]] == [1, 1, 0]
    assert all(row["loss"] is not None and row["grad_norm"] > 0 for row in rows[1:])
    assert all(torch.isfinite(torch.tensor(row["kl_to_old"])) for row in rows[1:])


def test_a_skipped_update_leaves_the_weights_alone(tmp_path, tiny, monkeypatch):
    broken_now_and_then(monkeypatch, {0, 1})
    rows = run("--steps", 1, "--save-every", 0, "--micro-batch-size", 8, "--tokens-per-microbatch", 10**6,
               "--out", tmp_path / "run")
    assert rows[1]["skipped_updates"] == 2 and rows[1]["loss"] is None and rows[1]["grad_norm"] is None
    from safetensors.torch import load_file

    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in tiny[0].state_dict().items() if name in after)


def test_skips_in_a_row_are_counted_across_a_resumption(tmp_path, monkeypatch, capsys):
    broken_now_and_then(monkeypatch, {2, 3})
    run("--steps", 2, "--save-every", 2, "--micro-batch-size", 8, "--tokens-per-microbatch", 10**6,
        "--out", tmp_path / "run")
    monkeypatch.undo()
    broken_now_and_then(monkeypatch, {0})
    with pytest.raises(SystemExit) as stop:
        run("--resume", tmp_path / "run", "--steps", 3, quick=False)
    assert stop.value.code == 1 and "step 3" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [
    ["--max-new-tokens", "1"],  # every response truncated, or the eos alone
    ["--max-new-tokens", "2", "--objective", "dapo"],  # all groups filtered out
    ["--max-new-tokens", "1", "--objective", "reinforce_pp"],
    ["--max-new-tokens", "1", "--objective", "rpg_reinforce_clip_urkl", "--length-reward", "0.5"],
])
def test_a_step_in_which_all_are_truncated(tmp_path, flags):
    rows = run("--steps", 1, "--eval-every", 0, "--save-every", 0, *flags, "--out", tmp_path / "run")
    assert rows[1]["truncated_fraction"] > 0.5 and rows[1]["skipped_updates"] == 0
    assert all(value is None or abs(value) < 1e9 for value in rows[1].values())
