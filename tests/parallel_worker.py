r"""Several short runs in one go, as starting processes takes longest: test_parallel.py starts it under torchrun."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plumbing import parallel  # noqa: E402
import plumbing.run  # noqa: E402
import train as program  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from scoring import token_log_probs  # noqa: E402

RUNS = dict(
    replicas=["--objective", "pmd_mean"],
    # 3 prompts on 2 processes, filtered, a reference, several small microbatches: uneven in every way
    uneven=["--objective", "dapo", "--prompts-per-step", "3", "--minibatch-size", "12",
            "--tokens-per-microbatch", "100"],
    reference=["--objective", "grpo", "--prompts-per-step", "3", "--minibatch-size", "12",
               "--tokens-per-microbatch", "100", "--ref-update-every", "2"],
    # one of the processes, as it were, has less memory than the other
    out_of_memory=["--objective", "pmd_mean", "--micro-batch-size", "auto"],
    # one prompt on 2 processes: one of them has nothing to do
    one_prompt=["--objective", "rloo", "--prompts-per-step", "1", "--minibatch-size", "4"],
)
QUICK = ["--preset", "tiny", "--prompts-per-step", "4", "--group-size", "4", "--minibatch-size", "8", "--steps", "2",
         "--eval-size", "5", "--eval-every", "2", "--save-every", "2", "--max-new-tokens", "40", "--device", "cpu",
         "--train-data", str(ROOT / "tiny" / "test.jsonl"), "--seed", "6",
         "--temperature", "1", "--reward-above", "-1", "--reward-below", "2"]  # as in test_train.py


def with_little_memory(*arguments, real=program.token_log_probs):
    r"""The second process has room for two responses."""
    if parallel.rank() == 1 and len(arguments[1].texts) > 2:
        raise torch.OutOfMemoryError
    return real(*arguments)


def main(out):
    for name, flags in RUNS.items():
        program.token_log_probs = with_little_memory if name == "out_of_memory" else token_log_probs
        settings = parse_settings([*QUICK, "--out", f"{out}/{name}", *flags])
        parallel.start(program.device_of(settings))
        program.train(settings)
        if name == "replicas":
            program.train(parse_settings(["--resume", f"{out}/{name}", "--steps", "3"]))
    parallel.stop()


if __name__ == "__main__":
    plumbing.run.draw_curves = lambda *_: None  # a second each
    main(sys.argv[1])
