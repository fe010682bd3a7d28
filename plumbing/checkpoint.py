r"""Checkpoints: what a run must keep to go on as if it had never stopped, and how to write it whole.

Everything random in `train.py` is a function of (seed, step): the order of the data, the shuffle of the minibatches,
and each response's uniform numbers (see `rollout.uniforms`). So no state of a random generator has to be kept. The
state of a run is the model, the optimizer, the reference where there is one, and a few counts.

A checkpoint is written under another name, flushed to disk, and renamed. A rename is done as a whole or not at all. So
`checkpoint-000020` exists whole or not at all, whenever the process is killed. Older checkpoints are deleted after the
rename. Nothing is read as a bare pickle: the model is safetensors, the optimizer is read `weights_only`.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError


def write_json(path, value):
    r"""Writes a JSON file whole or not at all."""
    temporary = Path(f"{path}.tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_model(folder, model, tokenizer):
    r"""Writes a Hugging Face directory whole or not at all."""
    temporary = Path(f"{folder}.tmp")
    with one_line_errors():
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)


def save_checkpoint(run_folder, step, model, tokenizer, optimizer, reference, progress):
    r"""Writes run_folder/checkpoint-<step>, then deletes older checkpoints.

    reference is the frozen policy of a KL penalty, or None; progress is a dict of numbers for state.json.
    Raises OSError where it cannot be written. Earlier checkpoints then stay.
    """
    folder = Path(run_folder) / f"checkpoint-{step:06d}"
    temporary = folder.with_suffix(".tmp")
    with one_line_errors():
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed while writing it
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        if reference is not None:
            reference.save_pretrained(temporary / "reference")
        write_json(temporary / "state.json", {"step": step, **progress})
        for path in [*temporary.rglob("*"), temporary]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    for older in checkpoints(run_folder)[:-1]:
        shutil.rmtree(older)


@contextlib.contextmanager
def one_line_errors():
    r"""Turns the errors of torch and safetensors for a full disk or a read-only folder into OSError."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(str(error).strip().splitlines()[0]) from error


def checkpoints(run_folder):
    r"""The whole checkpoints of a run, oldest first: a list of folders."""
    return sorted(path for path in Path(run_folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))


def load_state(folder, model, optimizer, reference, names):
    r"""Restores optimizer and reference from a checkpoint; returns its state.json, which must have all of `names`.

    Raises ValueError, one line, where a file is damaged or belongs to another run.
    """
    try:
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state)
        for parameter in model.parameters():
            average = optimizer.state[parameter].get("exp_avg", parameter) if optimizer.state else parameter
            if average.shape != parameter.shape:
                raise ValueError(f"averages of shape {tuple(average.shape)} for weights of {tuple(parameter.shape)}")
        if reference is not None:
            weights = type(reference).from_pretrained(folder / "reference", dtype=torch.float32)
            reference.load_state_dict(weights.state_dict())
        progress = json.loads((folder / "state.json").read_text())
        missing = set(names) - set(progress)
        if missing:
            raise ValueError(f"state.json has no {min(missing)}")
        return progress
    except Exception as error:  # each library raises its own kind for a damaged file
        cause = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ValueError(f"{folder} cannot be resumed from, it is damaged or of another run ({cause}): start a new run "
                         "with another --out") from error


def truncate_metrics(path, step):
    r"""Keeps the lines of metrics.jsonl up to `step` and returns them; drops what a kill left incomplete."""
    kept = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
            if row["step"] <= step:
                kept.append(row)
        except (ValueError, TypeError, KeyError):  # a crash may leave half a line, nulls, bytes of another file
            break
    temporary = Path(f"{path}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(temporary, path)
    return kept
