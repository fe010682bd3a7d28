r"""train.py against TRL's GRPOTrainer, taking turns in one process: `python benchmarks/vs_trl.py`.

An iteration of either samples responses, verifies them and takes AdamW steps. Both start from the embedded model, with
the embedded problems. They take turns, iteration by iteration, so anything else that the machine does slows both.

    default        seconds of an iteration: 256 responses (32 prompts x 8, up to 72 tokens, temperature 1), 4 steps of
                   64 responses, GRPO's loss without a KL term, the same learning rate. The first iteration of each is
                   left out, as both allocate memory in it
    --until 0.9    seconds of training until greedy answers to 384 held-out problems are right that often. Ours has the
                   defaults of `python train.py --objective pmd_mean`. TRL's GRPO samples as many responses at the same
                   temperature, with each setting of GRID in turn: updates per rollout and learning rate (constant,
                   after 10 steps). Its best counts. Evaluating is not timed

TRL's time is that of its own training steps, between on_step_begin and on_step_end, without data loading, logging or
saving. TRL generates with transformers' `generate`, its default; vLLM needs a GPU.

    pip install -r benchmarks/requirements.txt      (TRL is pinned there)
"""

import argparse
import copy
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
from benchmarks.throughput import one_update, processor  # noqa: E402
from gsm8k import INSTRUCTION, format_prompt, load_problems  # noqa: E402
from objectives import OBJECTIVES  # noqa: E402
from plumbing.model import load_model  # noqa: E402
from plumbing.settings import parse_settings  # noqa: E402
from reward_math import math_reward, verify  # noqa: E402
from rollout import sample_rollouts  # noqa: E402

GRID = [(16, 1e-4), (16, 2e-4)]  # as many updates per rollout as ours has at most
LONGEST = 14  # iterations of TRL, with --until


def our_iterations(settings):
    r"""Yields (model, seconds of sampling and verifying, seconds of all updates) after each iteration."""
    model, tokenizer = load_model(settings, settings.model)
    objective = OBJECTIVES[settings.objective]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0, fused=True)
    problems = load_problems(settings.train_data, "train")
    drawn = step = optimizer_steps = 0
    while True:
        step += 1
        clock = time.perf_counter()
        sampled, correct, drawn = program.sample(model, tokenizer, problems, settings, step, drawn)
        rollout_seconds = time.perf_counter() - clock
        clock = time.perf_counter()
        trained_on = program.trained_rows(settings, correct)
        rollout = sampled.select(trained_on)
        rollout.advantages = objective.advantages(correct[trained_on], rollout, settings)
        for minibatch in program.minibatches(rollout, settings, step):
            one_update(model, optimizer, rollout, minibatch, settings, optimizer_steps)
            optimizer_steps += 1
        yield model, rollout_seconds, time.perf_counter() - clock


def train_in_trl(settings, iterations, lr, warmup_steps, after_iteration, bf16=False):
    r"""Trains in TRL; calls after_iteration(seconds, model), which ends the run where it returns True."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    steps = settings.prompts_per_step * settings.group_size // settings.minibatch_size  # of TRL in an iteration

    class TakeTurns(TrainerCallback):
        seconds = started = 0.0

        def on_step_begin(self, args, state, control, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.seconds += time.perf_counter() - self.started
            if state.global_step % steps == 0:
                control.should_training_stop |= bool(after_iteration(self.seconds, model))
                self.seconds = 0.0

    def correct(completions, answer, **kwargs):
        return [math_reward(completion[0]["content"], gold) for completion, gold in zip(completions, answer)]

    rows = [{"prompt": [{"role": "user", "content": f"{p['question']}\n{INSTRUCTION}"}], "answer": p["answer"]}
            for p in load_problems(settings.train_data, "train")]
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.GRPOConfig(
            folder, use_cpu=not torch.cuda.is_available(), bf16=bf16, gradient_checkpointing=False,
            report_to="none", save_strategy="no", logging_steps=10**6, disable_tqdm=True, seed=0,
            max_steps=steps * iterations, num_generations=settings.group_size,
            per_device_train_batch_size=settings.minibatch_size, gradient_accumulation_steps=1,
            steps_per_generation=steps, max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature, learning_rate=lr, lr_scheduler_type="constant_with_warmup",
            warmup_steps=warmup_steps, loss_type="grpo", beta=0.0,
        )
        trl.GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32), correct, args=arguments,
            train_dataset=Dataset.from_list(rows), callbacks=[TakeTurns()],
            processing_class=AutoTokenizer.from_pretrained(settings.model),
        ).train()


def an_iteration(known):
    r"""Both train on 256 responses in four steps of 64, sampled at temperature 1, whatever their rewards are."""
    settings = parse_settings("--preset tiny --objective grpo --beta 0 --out unused --warmup-steps 0 "
                              "--lr-decay-steps 0 --lr 1e-4 --prompts-per-step 32 --group-size 8 --minibatch-size 64 "
                              "--temperature 1 --reward-above -1 --reward-below 2".split())
    iterations, ours, theirs = our_iterations(settings), [], []

    def after(seconds, _):
        theirs.append(seconds)
        ours.append(next(iterations)[1:])
        print(f"iteration {len(ours)}: ours {sum(ours[-1]):6.2f} s (rollout {ours[-1][0]:.2f}, update "
              f"{ours[-1][1]:.2f}), TRL {theirs[-1]:6.2f} s", flush=True)

    train_in_trl(settings, known.iterations + 1, settings.lr, 0, after, known.trl_bf16)
    ratios = [t / sum(o) for o, t in zip(ours[1:], theirs[1:])]
    result = dict(
        ours_seconds=statistics.median(sum(o) for o in ours[1:]),
        ours_rollout_seconds=statistics.median(o[0] for o in ours[1:]),
        ours_update_seconds=statistics.median(o[1] for o in ours[1:]),
        trl_seconds=statistics.median(theirs[1:]), ratio=statistics.median(ratios), lowest_ratio=min(ratios),
        highest_ratio=max(ratios), iterations=len(ratios),
    )
    print(f"\nmedian of {len(ratios)} iterations: ours {result['ours_seconds']:.2f} s, TRL {result['trl_seconds']:.2f} "
          f"s\nTRL / ours: {result['ratio']:.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    return result


def until(known):
    r"""Seconds of training to the accuracy asked for: of ours, and of TRL with each setting of GRID."""
    settings = parse_settings(["--preset", "tiny", "--objective", "pmd_mean", "--out", "unused"])
    problems = load_problems(settings.eval_data, "test", settings.eval_size)
    rows = []

    judge, tokenizer = load_model(settings, settings.model)
    prompts = [format_prompt(tokenizer, p["question"]) for p in problems]

    def accuracy(model):  # of a copy: the sampler chooses another attention function for its model
        judge.load_state_dict(model.state_dict())
        texts = sample_rollouts(judge, tokenizer, prompts, 1, settings.max_new_tokens, greedy=True).texts
        return sum(verify(text, p["answer"]) for text, p in zip(texts, problems)) / len(problems)

    for updates, lr in GRID:
        theirs = copy.copy(settings)
        theirs.minibatch_size = settings.prompts_per_step * settings.group_size // updates
        iterations, row = our_iterations(settings), dict(updates=updates, lr=lr, ours=[0.0, 0.0, 0], trl=[0.0, 0.0, 0])

        def count(name, seconds, model):
            total, _, rounds = row[name]
            row[name] = [total + seconds, accuracy(model), rounds + 1]
            print(f"{updates} updates, lr {lr:g}: {name:4s} {row[name][0]:6.1f} s, accuracy {row[name][1]:.3f}",
                  flush=True)

        def after(seconds, model):
            count("trl", seconds, model)
            if row["ours"][1] < known.until:
                model, *seconds = next(iterations)
                count("ours", sum(seconds), model)
            return row["trl"][1] >= known.until

        train_in_trl(theirs, LONGEST, lr, settings.warmup_steps, after, known.trl_bf16)
        rows.append(row)
    reached = [row for row in rows if row["trl"][1] >= known.until]
    result = dict(until=known.until, grid=[
        {"trl_updates": row["updates"], "trl_lr": row["lr"], **{f"{who}_{name}": value for who in ("ours", "trl")
         for name, value in zip(("seconds", "accuracy", "iterations"), row[who])}} for row in rows])
    if reached:
        best = min(reached, key=lambda row: row["trl"][0])
        result["ratio"] = best["trl"][0] / best["ours"][0]
        print(f"\nTRL's best, {best['updates']} updates and lr {best['lr']:g}: {best['trl'][0]:.0f} s; ours in the "
              f"same run {best['ours'][0]:.0f} s; TRL / ours: {result['ratio']:.2f}")
    return result


def main():
    parser = argparse.ArgumentParser(description="train.py against TRL's GRPOTrainer, taking turns.")
    parser.add_argument("--iterations", type=int, default=8, help="measured iterations of each")
    parser.add_argument("--until", type=float, metavar="ACCURACY", help="seconds of training until this, instead")
    parser.add_argument("--trl-bf16", action="store_true", help="TRL in bfloat16 autocast; its float32 is the default")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    known = parser.parse_args()
    try:
        import trl
    except ImportError as error:
        print(f"vs_trl.py: {error}: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        sys.exit(2)
    result = dict(processor=processor(), threads=torch.get_num_threads(), trl=trl.__version__,
                  trl_precision="bfloat16" if known.trl_bf16 else "float32")
    print(f"{result['processor']}, {result['threads']} threads, TRL {trl.__version__} in {result['trl_precision']}")
    result |= an_iteration(known) if known.until is None else until(known)
    if known.out:
        known.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
