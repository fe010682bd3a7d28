r"""The metrics of a step, one line of metrics.jsonl. Each is defined where it is computed, in `row` below.

Metrics of sampling are over all sampled responses, including groups that --filter-groups drops. Metrics of training are
over all minibatches and epochs. They are null in a step in which every group was dropped. A number that is not finite
is written as null, as JSON cannot hold it.
"""

import math

import torch

from kl_estimators import k3
from plumbing import parallel

NAMES = ("step", "reward_mean", "eval_accuracy", "loss", "grad_norm", "skipped_updates", "overflowed_updates",
         "kl_to_old", "kl_to_reference", "sampler_mismatch", "entropy", "response_length", "truncated_fraction",
         "zero_variance_fraction", "seconds_rollout", "seconds_update", "tokens_per_second")


class Update:
    r"""Sums over the response tokens of one minibatch, taken just before its optimizer step."""

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens  # of the whole minibatch, over all processes
        self.loss = 0.0
        self.kl = 0.0  # w - 1 - log w, w = pi_theta/pi_old
        self.kl_ref = 0.0  # k3(pi_ref/pi_theta), where there is a reference
        self.mismatch = 0.0  # |log pi_old of the sampler - log pi of the trainer|
        self.grad_norm = 0.0  # Euclidean, before clipping
        self.skipped = False  # True: loss or gradient was not finite, and the weights were left alone
        self.overflowed = False  # True: skipped, but only the scaled gradient was not finite (float16)

    @torch.no_grad()
    def add(self, loss, log_probs, part):
        r"""Adds a microbatch: its share of the loss, log_probs [n, T], and the Rollout of its rows."""
        self.loss += loss.item()
        self.kl += k3(part.log_probs, log_probs).sum().item()  # [n, T], 0 outside the mask
        self.mismatch += (part.log_probs - log_probs).abs().sum().item()
        if part.ref_log_probs is not None:
            self.kl_ref += k3(log_probs, part.ref_log_probs).sum().item()

    def sum_over_processes(self, policy):
        r"""Adds up the gradients and the sums of all processes. With one there is nothing to do."""
        if parallel.world() == 1:
            return
        parallel.sum_gradients(policy)
        sums = torch.tensor([self.loss, self.kl, self.kl_ref, self.mismatch], dtype=torch.float64,
                            device=policy.device)
        self.loss, self.kl, self.kl_ref, self.mismatch = parallel.total(sums).tolist()


def average_kl(before, update):
    r"""The KL to the reference in nats per token, averaged over updates with a weight of 0.1 for the newest.

    The KL of a skipped update may be nan, and an average that has taken one in stays nan: it is left out.
    """
    if update.skipped:
        return before
    return 0.9 * before + 0.1 * update.kl_ref / max(1, update.num_tokens)


def row(step, sampled, rewards, updates, group_size, mismatch, has_reference, accuracy, seconds):
    r"""The metrics of a step as a dict: `sampled` is its whole Rollout, rewards [N], updates a list of Update.

    mismatch: in nats, where old log-probs were recomputed; None: it is taken from the first minibatch.
    seconds: (sampling and verifying, all optimizer steps).
    """
    taken = [update for update in updates if not update.skipped]
    trained_tokens = max(1, sum(update.num_tokens for update in taken))
    tokens = int(sampled.response_mask.sum())
    groups = rewards.view(-1, group_size)  # [prompts, G]
    if mismatch is None and updates:
        mismatch = updates[0].mismatch / max(1, updates[0].num_tokens)
    values = dict(
        step=step,
        # mean reward of the sampled responses; without shaping it is the fraction that is right
        reward_mean=rewards.mean().item(),
        # fraction of held-out problems that greedy decoding answers right; step 0: base model; null: not evaluated
        eval_accuracy=accuracy,
        # means over the optimizer steps that were taken
        loss=sum(update.loss for update in taken) / len(taken) if taken else None,
        grad_norm=sum(update.grad_norm for update in taken) / len(taken) if taken else None,
        # optimizer steps left out because their loss or gradient was not finite
        skipped_updates=sum(update.skipped and not update.overflowed for update in updates),
        # optimizer steps left out because the gradient did not fit into float16 times the loss's factor, which was
        # then halved. Some are normal, mostly at the start; always 0 in other precisions
        overflowed_updates=sum(update.overflowed for update in updates),
        # KL(pi_old || pi_theta) in nats per token
        kl_to_old=sum(update.kl for update in taken) / trained_tokens if taken else None,
        # k3(pi_ref/pi_theta) at the tokens of pi_old, without a weight: KL(pi_theta || pi_ref) while theta is near old
        kl_to_reference=sum(u.kl_ref for u in taken) / trained_tokens if taken and has_reference else None,
        # mean |difference| of log-probs between sampler and trainer, nats per token: rounding, or a bug
        sampler_mismatch=mismatch,
        # nats per token of the sampling policy, estimated by the mean of -log pi_old(y_t)
        entropy=-sampled.log_probs.sum().item() / max(1, tokens),
        # mean number of sampled tokens in a response, the eos included
        response_length=tokens / len(rewards),
        # fraction of responses that max_new_tokens ended
        truncated_fraction=sampled.truncated.float().mean().item(),
        # fraction of groups whose rewards are all equal. Their advantages are 0, except with reinforce_pp, which
        # normalises over the whole batch
        zero_variance_fraction=(groups == groups[:, :1]).all(dim=1).float().mean().item(),
        seconds_rollout=seconds[0],
        seconds_update=seconds[1],
        # sampled tokens divided by the seconds of both
        tokens_per_second=tokens / sum(seconds),
    )
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
