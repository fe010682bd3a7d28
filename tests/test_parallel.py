r"""Two processes against one: the same samples, losses and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from parallel_worker import RUNS, main
from safetensors.torch import load_file

from plumbing.metrics import NAMES

pytestmark = pytest.mark.slow


def start_two(out):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "tests" / "parallel_worker.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    r"""(folder of the runs by one process, folder of the runs by two, what the two printed)."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    main(one)
    return one, two, start_two(two)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(runs, name):
    one, two = metrics(runs[0] / name), metrics(runs[1] / name)
    assert len(one) == len(two) == (4 if name == "replicas" else 3)  # replicas: resumed, its last step anew
    for a, b in zip(one, two):
        for key in NAMES:
            if key.startswith("seconds") or key.startswith("tokens_per") or key == "sampler_mismatch":
                continue
            expected = None if a[key] is None else pytest.approx(a[key], rel=2e-4, abs=1e-7)
            assert b[key] == expected, key
    base = load_file(ROOT / "tiny" / "model" / "model.safetensors")
    a, b = (load_file(folder / name / "model" / "model.safetensors") for folder in runs[:2])
    assert a.keys() == b.keys() == base.keys()
    moved, apart = (sum((a[key] - other[key]).square().sum() for key in a) ** 0.5 for other in (base, b))
    # Not element by element: AdamW's first steps have the size of lr however small, and so inexact, a gradient is.
    assert 0 < moved and apart < 0.02 * moved


def test_only_one_process_writes_and_prints(runs):
    printed = runs[2].stdout
    assert printed.count("parameters on 2 x cpu") == printed.count("peak memory") == len(RUNS) + 1  # one is resumed
    assert not list(Path(runs[1]).rglob("*.tmp"))


def test_the_process_that_runs_out_of_memory_halves_its_own_microbatches(runs):
    errors = [line for line in runs[2].stderr.splitlines() if "out of memory" in line]
    assert len(errors) == 1 and "tokens per forward pass" in errors[0]


@pytest.mark.parametrize("name", ["replicas", "reference"])
def test_a_checkpoint_of_two_processes_is_whole(runs, name):
    folders = [next((path / name).glob("checkpoint-*")) for path in runs[:2]]
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in folders]
    first, second = (next(iter(state.values())) for state in states)
    assert first["exp_avg"].shape == second["exp_avg"].shape  # not a shard of it
    torch.testing.assert_close(first["exp_avg"], second["exp_avg"], rtol=1e-3, atol=1e-6)
