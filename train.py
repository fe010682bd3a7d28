r"""Reinforcement learning with verifiable rewards, as one readable loop: `python train.py --objective pmd_mean`.

    for step = 1 .. steps
        sample      y_1 .. y_G ~ pi_old( . | x) for each prompt x of the step        rollout.py
        verify      r_i = 1 if the answer of y_i is right, else 0                    reward_math.py
        baseline    A_i = r_i - mean of r over the group of x                        the objective's advantages
        update      for each minibatch of whole groups (up to 16 a step, so pi_theta leaves pi_old):
                        log pi_theta(y_t | x, y_<t), with gradients                  scoring.py
                        the objective's loss of each event, summed up, backward      pmd_mean.py, aggregation.py
                        one AdamW step
        evaluate    greedy answers to held-out problems, every --eval-every steps

objectives.py has one entry for each name of --objective.

pi_old is the policy at the start of the step. Its log-probs are the sampler's own, so no second pass is needed.
`--old-log-probs recomputed` adds a second pass. With bfloat16 and float16 this is the default: decoding with a cache
and reading a response at once then differ by more than float32 rounding.

A response that was cut off stays in its group. It counts in the baseline, with the reward that its text earns.

Presets. `tiny`, the default on every machine, is the embedded model and task (see tiny/make.py). It takes two CPU cores
about a minute. `gsm8k` trains Qwen2.5-0.5B-Instruct on GSM8K and needs a GPU and a network. It was NOT run on a GPU by
its authors. Every setting has a flag: `python train.py --help`.

Precision. Every CPU computes in float32, so a run is the same on each to rounding. A CUDA device that has bfloat16 uses
it by autocast, and so does `--dtype bfloat16`; weights, head and losses stay float32. `--dtype float16` is for GPUs
without bfloat16; it scales the loss.

What a run writes in its folder
    config.json          the settings, in full
    metrics.jsonl        one object per step, written when the step ends; plumbing/metrics.py defines it
    curves.png           the picture of it
    checkpoint-<step>/   the last whole checkpoint; `--resume FOLDER` goes on from it, as if the run had never stopped
    model/               the trained model, a Hugging Face directory

A reader may skip `plumbing/`: settings, folders, checkpoints, console, microbatches, several processes. With
`torchrun --nproc_per_node=2 train.py ...` two processes take the steps of one, to rounding.
"""

import math

import torch

from aggregation import aggregate
from gsm8k import format_prompt
from importance import sequence_weights, token_weights, weighted
from objectives import OBJECTIVES
from plumbing import metrics, parallel
from plumbing.batches import halving, log_probs_of, microbatches
from plumbing.model import autocast, device_of, overflowed, recomputes_old_log_probs
from plumbing.run import Interrupt, Run, show
from plumbing.settings import fail, parse_settings
from reward_math import math_reward, verify
from rewards import bounded_groups, length_reward, mixed_groups, overlong_penalty
from rollout import concatenate, sample_rollouts, seeded
from scoring import token_log_probs

MAX_GRAD_NORM = 1.0  # longer gradients are scaled down to it, as in RPG's paper
UNSCALED = torch.amp.GradScaler(enabled=False)  # does nothing; in float16, run.scaler keeps small gradients from 0


def train(settings):
    r"""Trains as the settings say; returns the rows of metrics.jsonl."""
    run = Run(settings)  # AdamW; reference: a frozen copy of the initial model, or None
    objective, policy, optimizer, reference = OBJECTIVES[settings.objective], run.policy, run.optimizer, run.reference
    if run.is_new:
        run.record(0, accuracy=evaluate(run, 0))

    for step in run.steps():
        # y_1 .. y_G ~ pi_old( . | x): a group of responses to each prompt, from the current policy.
        sampled, correct, run.drawn = sample(policy, run.tokenizer, run.problems, settings, step, run.drawn)
        rewards = shaped_rewards(settings, correct, sampled)  # [N]
        run.lap()

        trained_on = trained_rows(settings, correct)  # [N'], those of groups with a signal; gsm8k: all
        if len(trained_on):
            rollout = sampled.select(trained_on)  # the responses to train on, with the tensors of each
            if recomputes_old_log_probs(settings):
                rollout.sampler_log_probs = rollout.log_probs
                rollout.log_probs = log_probs_of(policy, rollout, settings)  # [N', T]
                mismatch = (rollout.log_probs - rollout.sampler_log_probs).abs().sum() / rollout.response_mask.sum()
                run.mismatch = mismatch.item()
            if reference:
                rollout.ref_log_probs = log_probs_of(reference, rollout, settings)  # [N', T]
            rollout.advantages = objective.advantages(  # [N'] or [N', T], on the host, which has float64
                rewards[trained_on], rollout.to("cpu"), settings).to(policy.device)

            for minibatch in minibatches(rollout, settings, step):  # [minibatch_size]
                optimizer.zero_grad(set_to_none=True)
                update = backward(policy, objective, rollout, minibatch, settings, run.scaler)
                optimizer_step(policy, optimizer, update, settings, run.optimizer_steps, run.scaler)
                run.optimizer_steps += 1
                run.after(update, step)
                if reference and run.reference_is_due():
                    reference.load_state_dict(policy.state_dict())
                    rollout.ref_log_probs = log_probs_of(reference, rollout, settings)
        run.lap()

        run.record(step, sampled, rewards, evaluate(run, step))
    return run.rows


@halving  # where memory was not enough, with --micro-batch-size auto
def backward(policy, objective, rollout, minibatch, settings, scaler=UNSCALED):
    r"""Adds to .grad the gradient of the objective's loss over the responses `minibatch`; returns metrics.Update.

    Each microbatch adds its share of ONE sum, divided by the counts of the whole minibatch. So cutting the minibatch,
    or dealing it out to several processes, changes the gradient by rounding only.
    """
    num_tokens = int(rollout.response_mask[minibatch].sum())
    update = metrics.Update(num_tokens)
    for rows, per_prompt in microbatches(policy, rollout, minibatch, settings):  # per_prompt rows share a prompt
        part = rollout.select(rows)
        with autocast(settings):
            log_probs = token_log_probs(policy, part, settings.temperature, per_prompt)  # [n, T], log pi_theta
        losses = objective.loss(log_probs, part, settings)  # [n, T] per token or [n] per response
        if settings.importance_weights != "off":  # off by default
            losses = weighted_for_the_sampler(losses, part, settings)
        # settings.aggregate is the objective's own, unless --aggregate was given.
        loss = aggregate(losses, part.response_mask, settings.aggregate, num_responses=len(minibatch),
                         num_tokens=num_tokens, max_new_tokens=settings.max_new_tokens)
        scaler.scale(loss).backward()
        update.add(loss, log_probs, part)
    return update


def weighted_for_the_sampler(losses, part, settings):
    r"""Losses times pi_old of the trainer over pi_old of the sampler, of the token or of the response as they are."""
    weights = token_weights if losses.dim() == 2 else sequence_weights
    return weighted(losses, weights(part.log_probs, part.sampler_log_probs, part.response_mask,
                                    settings.importance_threshold, settings.importance_weights))


def optimizer_step(policy, optimizer, update, settings, steps_before, scaler=UNSCALED):
    r"""One AdamW step on the clipped gradient; no step, and update.skipped, where loss or gradient is not finite."""
    update.sum_over_processes(policy)
    scaler.unscale_(optimizer)
    update.grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM).item()
    update.skipped = not (math.isfinite(update.loss) and math.isfinite(update.grad_norm))
    if not update.skipped:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, steps_before)
        scaler.step(optimizer)
    update.overflowed = overflowed(scaler) and update.skipped and math.isfinite(update.loss)


def learning_rate(settings, steps_before):
    r"""A linear rise, then constant or falling as 1/t. --steps does not enter: a resumed run may raise it."""
    rise = min(1.0, (steps_before + 1) / max(1, settings.warmup_steps))
    fall = 1 + steps_before / settings.lr_decay_steps if settings.lr_decay_steps else 1
    return settings.lr * rise / fall


def sample(policy, tokenizer, problems, settings, step, drawn):
    r"""Samples and verifies: (rollout, correct [N], drawn). --filter-groups may take up to three rounds of prompts.

    drawn is the number of problems used so far. Together with the seed it says which ones are next.
    """
    sample_all = parallel.over_processes(sample_rollouts)
    rollouts, correct, useful = [], [], 0
    while not rollouts or settings.filter_groups and len(rollouts) < 3 and useful < settings.prompts_per_step:
        batch = next_problems(problems, settings, drawn)
        drawn += len(batch)
        prompts = [format_prompt(tokenizer, problem["question"]) for problem in batch]
        with autocast(settings):
            rollout = sample_all(policy, tokenizer, prompts, settings.group_size, settings.max_new_tokens,
                                 settings.temperature, seed=f"{settings.seed} {step} {len(rollouts)}",
                                 decode=settings.decode)
        golds = [problem["answer"] for problem in batch for _ in range(settings.group_size)]
        rollouts.append(rollout)
        correct.append(torch.tensor([math_reward(text, gold) for text, gold in zip(rollout.texts, golds)]))
        useful += int(mixed_groups(correct[-1], settings.group_size).sum()) // settings.group_size
    return concatenate(rollouts), torch.cat(correct), drawn


def next_problems(problems, settings, drawn):
    r"""The next prompts_per_step problems after the first `drawn` ones. Each epoch has a new random order.

    It depends on (seed, drawn) only. So a run that is resumed goes on with the next problem.
    """
    chosen, order_of = [], {}
    for place in range(drawn, drawn + settings.prompts_per_step):
        epoch, index = divmod(place, len(problems))
        if epoch not in order_of:
            order_of[epoch] = torch.randperm(len(problems), generator=seeded(repr((settings.seed, "data", epoch))))
        chosen.append(problems[order_of[epoch][index]])
    return chosen


def shaped_rewards(settings, correct, rollout):
    r"""Rewards [N]: 1 for a right answer, else 0, plus the shaping that was asked for."""
    lengths = rollout.response_mask.sum(dim=1).cpu()  # [N]
    rewards = correct
    if settings.overlong_penalty:
        # Half: DAPO's penalty of up to 1 is for rewards of 1 and -1. These are 1 and 0, half as far apart.
        rewards = rewards + overlong_penalty(lengths, settings.max_new_tokens, settings.overlong_penalty) / 2
    if settings.length_reward:
        rewards = rewards + settings.length_reward * length_reward(correct, lengths, settings.group_size)
    return rewards


def trained_rows(settings, correct):
    r"""Indices of the responses to train on: all but the groups that the reward bounds or --filter-groups drop."""
    kept = bounded_groups(correct, settings.group_size, settings.reward_above, settings.reward_below)  # [N]
    if settings.filter_groups:
        kept &= mixed_groups(correct, settings.group_size)
    rows = kept.nonzero().squeeze(1)
    return rows[: settings.prompts_per_step * settings.group_size]


def minibatches(rollout, settings, step):
    r"""Yields the indices of the responses of each optimizer step: whole groups, in a new order each epoch."""
    G = settings.group_size
    for epoch in range(settings.epochs):
        order = torch.randperm(len(rollout.texts) // G,
                               generator=seeded(repr((settings.seed, "minibatches", step, epoch))))
        for groups in order.split(settings.minibatch_size // G):
            yield (groups[:, None] * G + torch.arange(G)).flatten().to(rollout.sequences.device)  # [minibatch_size]


def evaluate(run, step):
    r"""The fraction of held-out problems that greedy decoding answers right; None where no evaluation is due."""
    if not run.evaluation_is_due(step):
        return None
    settings, problems = run.settings, run.held_out
    sample_all = parallel.over_processes(sample_rollouts)
    prompts = [format_prompt(run.tokenizer, problem["question"]) for problem in problems]
    order = sorted(range(len(problems)), key=lambda i: len(prompts[i]))  # similar lengths need little padding
    size = settings.prompts_per_step * settings.group_size  # as many rows at a time as when sampling
    texts = {}
    for indices in (order[start : start + size] for start in range(0, len(order), size)):
        with autocast(settings):
            texts.update(zip(indices, sample_all(
                run.policy, run.tokenizer, [prompts[i] for i in indices], 1, settings.max_new_tokens, greedy=True,
                decode=settings.decode).texts))
    answers = [(problem, texts[i], verify(texts[i], problem["answer"])) for i, problem in enumerate(problems)]
    accuracy = sum(right for *_, right in answers) / len(answers)
    show(answers, step, accuracy)
    return accuracy


def main(arguments=None):
    settings = parse_settings(arguments)
    Interrupt.listen()
    parallel.start(device_of(settings))
    settings.out = parallel.from_first(settings.out)  # its default has the time in it
    try:
        train(settings)
    except OSError as error:
        fail(f"cannot write to {settings.out} ({error.strerror or error}): make room or give another --out; "
             f"what is there can be continued with --resume {settings.out}")
    finally:
        parallel.stop()


if __name__ == "__main__":
    main()
