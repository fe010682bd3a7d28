r"""One prompt, four responses, every tensor on their way: `python walkthrough.py --objective pmd_mean`.

The steps of `train.py`, by the same functions, on the smallest batch there is: tokens, rewards, advantages, log-probs,
ratios, loss, gradient. Each tensor is printed with its shape and a line that says what it is. Two updates are made on
the same responses, as in a minibatch seen twice: in the first the policy still is the sampler, so every ratio is 1; in
the second it has moved, and the objective's regularisation or clipping shows. Of a response the tokens are shown around
the place where the four first differ.

Any flag of `train.py` may be given. The problem is the first whose four answers are neither all right nor all wrong, as
equal rewards give advantages of 0.
"""

import copy
import sys

import torch

from aggregation import aggregate
from gsm8k import format_prompt, load_problems
from objectives import OBJECTIVES
from plumbing.batches import log_probs_of
from plumbing.metrics import Update
from plumbing.model import autocast, grad_scaler, load_model
from plumbing.settings import fail, needs_reference, parse_settings, printable
from reward_math import extract_answer, math_reward
from rollout import sample_rollouts
from scoring import token_log_probs
from train import optimizer_step

SHOWN = 12  # tokens of a response


def say(name, tensor, meaning, first=0):
    r"""A tensor's name, shape, precision and meaning, then its numbers from column `first` on."""
    kind = str(tensor.dtype).removeprefix("torch.")
    print(f"\n{name}  {list(tensor.shape)} {kind}\n    {meaning}")
    table = tensor.detach().cpu().reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
    first = first if tensor.dim() == 2 else 0
    for row in table:
        shown = row[first : first + SHOWN].tolist()
        numbers = " ".join(f"{x:9.4f}" if tensor.is_floating_point() else f"{int(x):9d}" for x in shown)
        print(f"    {'... ' if first else ''}{numbers}{' ...' if len(row) > first + SHOWN else ''}")


def mixed_group(policy, tokenizer, problems, settings):
    r"""(problem, rollout, rewards [G]) of the first problem that some responses get right and some do not."""
    for problem in problems[:64]:
        rollout = sample_rollouts(policy, tokenizer, [format_prompt(tokenizer, problem["question"])],
                                  settings.group_size, settings.max_new_tokens, settings.temperature,
                                  seed=settings.seed)
        rewards = torch.tensor([math_reward(text, problem["answer"]) for text in rollout.texts])  # [G]
        if len(set(rewards.tolist())) > 1:
            return problem, rollout, rewards
    fail("none of 64 problems has right and wrong answers: try another --seed or a larger --temperature")


def main(arguments):
    small = ["--prompts-per-step", "1", "--group-size", "4", "--minibatch-size", "4", "--lr", "1e-3",
             "--warmup-steps", "0"]
    settings = parse_settings([*small, *arguments])
    objective = OBJECTIVES[settings.objective]
    policy, tokenizer = load_model(settings, settings.model)
    reference = copy.deepcopy(policy).requires_grad_(False) if needs_reference(settings) else None
    with autocast(settings):
        problem, rollout, rewards = mixed_group(policy, tokenizer, load_problems(settings.train_data), settings)
    mask = rollout.response_mask  # [N, T]

    print(f"{settings.objective}: {objective.source}; a mean of kind {settings.aggregate}; "
          + ", ".join(f"{name} {getattr(settings, name)}" for name in objective.settings))
    print("\n--- 1. Sample: y_1 .. y_G ~ pi_old( . | x)  (rollout.sample_rollouts)")
    print(f"\n{printable(problem['question'])}")
    T = mask.shape[1]
    said = rollout.sequences[:, -T:]  # [N, T]
    differ = (said != said[:1]).any(dim=0).nonzero()  # as one answer is right and one wrong, there is a first column
    first = max(0, min(int(differ[0]) - 3, T - SHOWN))
    say("rollout.sequences", rollout.sequences,
        "token ids, a response a row: the prompt, then the response, then padding; as text here:",
        rollout.sequences.shape[1] - T + first)
    for row in said[:, first : first + SHOWN].tolist():
        print("    ... " + " ".join(f"{tokenizer.decode([token])!r:>9s}" for token in row))
    say("rollout.response_mask", mask, "1 where a token was sampled, the end-of-sequence token included", first)
    say("rollout.log_probs", rollout.log_probs, "log pi_old(y_t | x, y_<t) of the sampled tokens, in nats",
        first)

    print("\n--- 2. Verify: 1 if the answer is right, else 0  (reward_math.math_reward)\n")
    for text, reward in zip(rollout.texts, rewards.tolist()):
        print(f"    answer {extract_answer(text)!s:10s} reward {reward:.0f}   {printable(text)[:76]!r}")
    say("rewards", rewards, f"the right answer is {problem['answer'].split('####')[-1].strip()}")

    print("\n--- 3. Baseline: what is better than the group  (objectives.py: advantages)")
    if reference:
        rollout.ref_log_probs = log_probs_of(reference, rollout, settings)  # [N, T]
        say("rollout.ref_log_probs", rollout.ref_log_probs, "log pi_ref of the same tokens, the frozen initial model",
            first)
    rollout.advantages = objective.advantages(rewards, rollout.to("cpu"), settings).to(policy.device)  # [N] or [N, T]
    say("rollout.advantages", rollout.advantages, "of a response, or of each token where the objective has it so",
        first)

    optimizer, scaler = torch.optim.AdamW(policy.parameters(), lr=settings.lr), grad_scaler(settings)
    for number in (1, 2):
        print(f"\n--- {3 + number}. Update {number}: loss, backward (as in train.backward), train.optimizer_step")
        optimizer.zero_grad(set_to_none=True)
        with autocast(settings):
            log_probs = token_log_probs(policy, rollout, settings.temperature, settings.group_size)  # [N, T]
        losses = objective.loss(log_probs, rollout, settings)  # [N, T] per token or [N] per response
        loss = aggregate(losses, mask, settings.aggregate, max_new_tokens=settings.max_new_tokens)
        scaler.scale(loss).backward()
        ratio = (log_probs - rollout.log_probs).detach().exp()  # [N, T]
        say("log_probs", log_probs, "log pi_theta of the same tokens, with gradients  (scoring.token_log_probs)", first)
        say("ratio", ratio, "w = pi_theta / pi_old of each token; 1 while the policy is the sampler", first)
        say("ratio of the whole response", ratio.log().sum(dim=1).exp(), "the product over its tokens")
        say("losses", losses, "of each event: a token, or a whole response", first)
        say("loss", loss, f"one number ({settings.aggregate}), whose gradient is taken")
        update = Update(int(mask.sum()))
        update.add(loss, log_probs, rollout)
        optimizer_step(policy, optimizer, update, settings, number - 1, scaler)
        print(f"\ngradient norm {update.grad_norm:.4f}, KL(pi_old || pi_theta) before this step "
              f"{update.kl / update.num_tokens:.2e} nats a token; AdamW takes a step of lr {settings.lr:g}")


if __name__ == "__main__":
    main(sys.argv[1:])
