r"""One iteration of train.py against one of TRL's GRPOTrainer: `python benchmarks/vs_trl.py`.

An iteration samples 256 responses (32 prompts x 8, up to 72 tokens, temperature 1) and verifies them. Then it takes 4
AdamW steps of 64 responses with GRPO's loss without a KL term. Both start from the embedded model, on the embedded
problems, with the same learning rate. They take turns in one process, iteration by iteration. So anything else that the
machine does slows both.

TRL's time is that of its own training steps, between on_step_begin and on_step_end, without data loading, logging or
saving. Ours is that of sampling, verifying and updating. Neither evaluates. The first iteration of each is left out, as
both allocate memory in it. TRL generates with transformers' `generate`, its default; vLLM needs a GPU.

    pip install -r benchmarks/requirements.txt      (TRL is pinned there)
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train as program  # noqa: E402
from gsm8k import INSTRUCTION, load_problems  # noqa: E402
from objectives import OBJECTIVES  # noqa: E402
from plumbing.model import load_model  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from benchmarks.throughput import processor  # noqa: E402
from reward_math import math_reward  # noqa: E402


def our_iterations(settings):
    r"""Yields the seconds of each iteration as (rollout, update)."""
    model, tokenizer = load_model(settings, settings.model)
    objective = OBJECTIVES[settings.objective]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
    problems = load_problems(settings.train_data, "train")
    drawn = step = optimizer_steps = 0
    while True:
        step += 1
        clock = time.perf_counter()
        rollout, correct, drawn = program.sample(model, tokenizer, problems, settings, step, drawn)
        rollout_seconds = time.perf_counter() - clock
        clock = time.perf_counter()
        rollout.advantages = objective.advantages(correct, rollout, settings)
        for minibatch in program.minibatches(rollout, settings, step):
            optimizer.zero_grad(set_to_none=True)
            update = program.backward(model, objective, rollout, minibatch, settings)
            program.optimizer_step(model, optimizer, update, settings, optimizer_steps)
            optimizer_steps += 1
        yield rollout_seconds, time.perf_counter() - clock


def main():
    parser = argparse.ArgumentParser(description="One iteration of train.py against TRL's GRPOTrainer, taking turns.")
    parser.add_argument("--iterations", type=int, default=8, help="measured iterations of each")
    parser.add_argument("--trl-bf16", action="store_true", help="TRL in bfloat16 autocast; its float32 is the default")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    known = parser.parse_args()
    try:
        import trl
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    except ImportError as error:
        print(f"vs_trl.py: {error}: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        sys.exit(2)

    # Both train on 256 responses in four steps of 64, sampled at temperature 1, whatever their rewards are.
    settings = parse_settings("--preset tiny --objective grpo --beta 0 --out unused --warmup-steps 0 "
                              "--lr-decay-steps 0 --lr 1e-4 --prompts-per-step 32 --group-size 8 --minibatch-size 64 "
                              "--temperature 1 --reward-above -1 --reward-below 2".split())
    ours_iterations, ours, theirs = our_iterations(settings), [], []
    steps = settings.prompts_per_step * settings.group_size // settings.minibatch_size  # of TRL in an iteration

    class TakeTurns(TrainerCallback):
        r"""Sums the seconds of TRL's steps. After each of its iterations ours runs."""

        seconds = started = 0.0

        def on_step_begin(self, args, state, control, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds += time.perf_counter() - self.started
            if state.global_step % steps == 0:
                theirs.append(self.seconds)
                self.seconds = 0.0
                ours.append(next(ours_iterations))
                print(f"iteration {len(ours)}: ours {sum(ours[-1]):6.2f} s (rollout {ours[-1][0]:.2f}, update "
                      f"{ours[-1][1]:.2f}), TRL {theirs[-1]:6.2f} s", flush=True)

    problems = load_problems(settings.train_data, "train")
    rows = [{"prompt": [{"role": "user", "content": f"{p['question']}\n{INSTRUCTION}"}], "answer": p["answer"]}
            for p in problems]

    def correct(completions, answer, **kwargs):
        return [math_reward(completion[0]["content"], gold) for completion, gold in zip(completions, answer)]

    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.GRPOConfig(
            folder, use_cpu=not torch.cuda.is_available(), bf16=known.trl_bf16, gradient_checkpointing=False,
            report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True, seed=0,
            max_steps=steps * (known.iterations + 1), num_generations=settings.group_size,
            per_device_train_batch_size=settings.minibatch_size, gradient_accumulation_steps=1,
            steps_per_generation=steps, max_completion_length=settings.max_new_tokens, temperature=1.0,
            learning_rate=settings.lr, lr_scheduler_type="constant", loss_type="grpo", beta=0.0,
        )
        trainer = trl.GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32), correct, args=arguments,
            train_dataset=Dataset.from_list(rows), callbacks=[TakeTurns()],
            processing_class=AutoTokenizer.from_pretrained(settings.model),
        )
        trainer.train()

    ratios = [t / sum(o) for o, t in zip(ours[1:], theirs[1:])]
    result = dict(
        processor=processor(), trl=trl.__version__, trl_precision="bfloat16" if known.trl_bf16 else "float32", threads=torch.get_num_threads(),
        ours_seconds=statistics.median(sum(o) for o in ours[1:]),
        ours_rollout_seconds=statistics.median(o[0] for o in ours[1:]),
        ours_update_seconds=statistics.median(o[1] for o in ours[1:]),
        trl_seconds=statistics.median(theirs[1:]), ratio=statistics.median(ratios), lowest_ratio=min(ratios),
        highest_ratio=max(ratios), iterations=len(ratios),
    )
    print(f"\nmedian of {len(ratios)} iterations, {result['threads']} threads: ours {result['ours_seconds']:.2f} s, "
          f"TRL {result['trl']} in {result['trl_precision']} {result['trl_seconds']:.2f} s\nTRL / ours: "
          f"{result['ratio']:.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    if known.out:
        known.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
