r"""Checkpoints: what a run must keep to go on as if it had never stopped, and how to write it so that it is whole.

Everything random in `train.py` is a function of (seed, step): the order of the data, the shuffle of the minibatches,
and each response's uniform numbers (see `rollout.uniforms`). So the state of a run is the model, the optimizer and
one number, the step; there is no random-number state to forget.

A checkpoint is written under another name, flushed to disk, and renamed: on every file system that matters a rename
is all or nothing, so `checkpoint-000020` exists whole or not at all, whenever the process is killed. Only then are
older ones deleted. No file in it is a pickle: the model is safetensors, the optimizer is read with `weights_only`.
"""

import json
import os
import re
import shutil
from pathlib import Path

import torch


def write_json(path, value):
    r"""Writes a JSON file whole or not at all."""
    temporary = Path(f"{path}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def save_checkpoint(run_folder, step, model, tokenizer, optimizer, progress):
    r"""Writes run_folder/checkpoint-<step>, then deletes older checkpoints. `progress` is a dict for state.json."""
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed while writing it
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    write_json(temporary / "state.json", {"step": step, **progress})
    for path in [*temporary.iterdir(), temporary]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
    for older in checkpoints(run_folder)[:-1]:
        shutil.rmtree(older)


def checkpoints(run_folder):
    r"""The whole checkpoints of a run, oldest first: a list of folders."""
    return sorted(path for path in Path(run_folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))


def load_optimizer(folder, optimizer):
    r"""Restores the optimizer from a checkpoint and returns its state.json, a dict with "step" and what was saved."""
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    return json.loads((folder / "state.json").read_text())


def truncate_metrics(path, step):
    r"""Keeps the lines of metrics.jsonl up to `step`; a last line cut short by a kill goes too. Returns them."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] <= step:
                kept.append(row)
    temporary = Path(f"{path}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(temporary, path)
    return kept
