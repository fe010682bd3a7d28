r"""Importance weights for a sampler that is not the trainer: what they correct, what they cannot, and where they go.

The responses come from mu: an inference engine with its own kernels and precision, or the model under top-p, another
temperature, an older checkpoint. Its log-probs must be those of what it drew from: after temperature and top-p, which
some engines report only when asked. The trainer takes the responses for its own policy's, pi_old. In

    E_pi_old[loss] = E_mu[w loss],     w = pi_old/mu     of the whole response, the product of its tokens' ratios

w makes up for the difference, as far as mu can sample what pi_old can. This is not the ratio pi_theta/pi_old inside
PPO's or RPG's losses: that one moves with theta, this one is a constant, and a loss may have both.

    weight      value                          bias                               variance
    none        1                              the whole mismatch                 none added
    sequence    prod_t w_t                     0, where mu covers pi_old          grows exponentially with length
    token       w_t for the loss of token t    prefixes remain mu's               moderate
    truncated   min(w, C)                      what w had above C                 bounded
    masked      w in [1/C, C], else 0          all of what lies outside           bounded; drops what looks broken

Sources: OpenKimi and verl have such weights for the rollout engine. OpenKimi's scripts have weights per sequence with
a threshold of 5. verl's default threshold is 2. The statements on bias are [derived], by enumeration.

Where they go: on each response's or token's loss, before anything is averaged (`weighted`, then aggregation.py).
OpenKimi multiplies the loss that is already a mean. Then every response has the same factor, and nothing is corrected:
it is a learning rate that varies from batch to batch.

Top-p (and top-k) sampling: mu is pi_old on the nucleus of each prefix, divided by the nucleus's probability Z_t there,
and 0 elsewhere. "inside" are the responses that mu can sample.
- Without weights the mean step is grad E_mu[r] + E_mu[A sum_t grad log Z_t], with the nucleus held fixed: the second
  part moves probability between the nucleus and the tokens outside it, which never get a sample to defend them.
- With w = prod_t Z_t the step is exactly grad E_pi[(r - b) inside]. w <= 1, so there is nothing to truncate.
- No weight brings back a response that mu cannot sample: it is missing, not rare. In the table weights do not lower the
  bias at top-p 0.95 and 0.8; at 0.5 a third of the bias is left. The baseline b, harmless elsewhere, adds a bias too:
  it changes the probability of being inside, which is below 1.
- What helps: sample with top-p = 1; or let the trainer's log-probs too be those of the truncated policy, whose own
  reward E_mu[r] then ascends without bias.

Two things stay the sampler's: the mean reward of the group, and the share of each prompt in the batch.

`python importance.py` shows, by enumeration, bias and noise of each weight for a sampler that covers the trainer's
policy, and the bias of top-p, without and with weights.
"""
import torch


def token_weights(old_log_probs, sampler_log_probs, response_mask, threshold, mode="truncate"):
    r"""Importance weights per token, w_t = pi_old/mu at token t: min(w_t, C), or w_t where it is in [1/C, C], else 0.

    old_log_probs (the trainer's, before its first update) and sampler_log_probs (mu's, as it reported them) [N, T] in
    nats, response_mask [N, T] non-zero where a token stands, threshold C >= 1, or inf for all of w; mode "truncate" or
    "mask" -> [N, T], 1 outside the response; float32, or float64 where old_log_probs is. No gradient.
    Ratios 0.2, 1.5, 4 with C = 2: truncated 0.2, 1.5, 2; masked 0, 1.5, 0.
    Exact for the loss of a token given its prefix; the prefixes remain mu's. What stands at masked positions does not
    matter. ValueError for other shapes, thresholds and modes.
    """
    if response_mask.dim() != 2 or not old_log_probs.shape == sampler_log_probs.shape == response_mask.shape:
        raise ValueError("old_log_probs, sampler_log_probs and response_mask must all be [N, T], got "
                         f"{[tuple(x.shape) for x in (old_log_probs, sampler_log_probs, response_mask)]}")
    if not threshold >= 1 or mode not in ("truncate", "mask"):
        raise ValueError(f"threshold must be at least 1 and mode truncate or mask, got {threshold} and {mode!r}")
    dtype = torch.promote_types(old_log_probs.dtype, torch.float32)
    log_w = old_log_probs.detach().to(dtype) - sampler_log_probs.detach().to(dtype)  # [N, T]
    log_w = torch.where(response_mask.bool(), log_w, 0.0)  # [N, T]
    log_c = torch.tensor(threshold, dtype=dtype, device=log_w.device).log()
    if mode == "truncate":
        return log_w.clamp(max=log_c).exp()  # [N, T], = min(w, C), and exp cannot overflow
    inside = log_w.abs() <= log_c  # [N, T]
    return torch.where(inside, torch.where(inside, log_w, 0.0).exp(), 0.0)  # [N, T]


def sequence_weights(old_log_probs, sampler_log_probs, response_mask, threshold, mode="truncate"):
    r"""Importance weights per response, w = prod_t pi_old/mu: min(w, C), or w where it is in [1/C, C], else 0.

    old_log_probs (the trainer's, before its first update) and sampler_log_probs (mu's, as it reported them) [N, T] in
    nats, response_mask [N, T] non-zero where a token stands, threshold C >= 1, or inf for all of w; mode "truncate" or
    "mask" -> [N], 1 for a response without tokens; float32, or float64 where old_log_probs is. No gradient.
    Token ratios 2 and 3 make w = 6: 5 when truncated at C = 5, 0 when masked.
    A difference of 0.01 nats a token in one direction is a factor of e^5 = 148 in 500 tokens: look at log w before
    choosing C. What stands at masked positions does not matter. ValueError for other shapes, thresholds and modes.
    """
    if response_mask.dim() != 2 or not old_log_probs.shape == sampler_log_probs.shape == response_mask.shape:
        raise ValueError("old_log_probs, sampler_log_probs and response_mask must all be [N, T], got "
                         f"{[tuple(x.shape) for x in (old_log_probs, sampler_log_probs, response_mask)]}")
    if not threshold >= 1 or mode not in ("truncate", "mask"):
        raise ValueError(f"threshold must be at least 1 and mode truncate or mask, got {threshold} and {mode!r}")
    dtype = torch.promote_types(old_log_probs.dtype, torch.float32)
    log_w = old_log_probs.detach().to(dtype) - sampler_log_probs.detach().to(dtype)  # [N, T]
    log_w = torch.where(response_mask.bool(), log_w, 0.0).sum(dim=1)  # [N]
    log_c = torch.tensor(threshold, dtype=dtype, device=log_w.device).log()
    if mode == "truncate":
        return log_w.clamp(max=log_c).exp()  # [N], = min(w, C), and exp cannot overflow
    inside = log_w.abs() <= log_c  # [N]
    return torch.where(inside, torch.where(inside, log_w, 0.0).exp(), 0.0)  # [N]


def weighted(losses, weights):
    r"""Each loss times its weight, to be averaged afterwards: w_i L_i, w_i L_it or w_it L_it.

    losses [N, T] per token or [N] per response, weights [N], or [N, T] for losses [N, T] -> like losses.
    Losses [1, 3] with weights [2, 0] give [2, 0], mean 1; the mean of the losses times the mean weight is 2.
    A loss with weight 0 is dropped, inf and nan included, from value and gradient. No gradient flows into the weights.
    ValueError for other shapes: [N, T] times [N] would pair tokens with weights of other responses where N = T.
    """
    if weights.shape not in (losses.shape, losses.shape[:1]):
        raise ValueError("weights must be [N] or have the shape of losses, got "
                         f"{tuple(weights.shape)} and {tuple(losses.shape)}")
    w = weights.detach().reshape(weights.shape + (1,) * (losses.dim() - weights.dim()))  # [N, 1], or like losses
    return torch.where(w == 0, 0.0, losses) * w  # where, not the product alone: 0 * nan is nan


def top_p_logits(logits, top_p):
    r"""Logits of the policy that top-p sampling draws from: -inf for tokens outside the nucleus.

    logits [..., V] -> [..., V]. The nucleus is the smallest set of the most probable tokens with probability >= top_p.
    """
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = probs.cumsum(dim=-1) - probs >= top_p  # the tokens before it suffice
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


def moments(losses, logits, sampler_logits):
    r"""Mean [7, 3] and noise of the gradient of one response's loss, over all responses of mu, exactly.

    losses(logits) -> [15]. Noise: the standard deviation, root of the summed variances of the 21 entries.
    """
    from enumeration import token_log_probs

    logits = logits.detach().clone().requires_grad_()
    p = token_log_probs(sampler_logits).sum(dim=1).exp()  # [15]
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses(logits)]
    gradients = torch.stack(gradients)  # [15, 7, 3]
    mean = (p[:, None, None] * gradients).sum(dim=0)  # [7, 3]
    return mean, (p * (gradients - mean).square().sum(dim=(1, 2))).sum().sqrt().item()


def main():
    from enumeration import MASK, gradient, random_policy, random_rewards, relative_error, token_log_probs

    policy, rewards = random_policy(1), random_rewards(3)
    old = token_log_probs(policy)  # [15, 3]
    exact = -gradient(lambda x: (token_log_probs(x).sum(dim=1).exp() * rewards).sum(), policy)
    inf = float("inf")

    def policy_gradient(sampler, weigh):
        r"""Mean and noise of the gradient of w_t (-A log pi_t), summed over a response's tokens; A = r - E_mu[r]."""
        mu = token_log_probs(sampler)  # [15, 3]
        a = rewards - (mu.sum(dim=1).exp() * rewards).sum()  # [15]
        w = weigh(old, torch.where(mu.isfinite(), mu, old), MASK)  # [15, 3] or [15]; what is never sampled counts 0
        return moments(lambda x: weighted(-a[:, None] * token_log_probs(x), w).sum(dim=1), policy, sampler)

    kinds = {
        "no weights": lambda old, mu, mask: torch.ones(15, dtype=old.dtype),
        "token": lambda *x: token_weights(*x, inf),
        "token, min(w, 2)": lambda *x: token_weights(*x, 2.0),
        "token, masked, C = 2": lambda *x: token_weights(*x, 2.0, "mask"),
        "sequence": lambda *x: sequence_weights(*x, inf),
        "sequence, min(w, 2)": lambda *x: sequence_weights(*x, 2.0),
        "sequence, masked, C = 2": lambda *x: sequence_weights(*x, 2.0, "mask"),
    }
    print("The policy gradient on responses of mu = policy + step * another one's logits, which covers the policy.\n"
          "bias: relative error of the mean gradient; noise: standard deviation of one response's, over its norm.\n")
    steps = (0.0, 0.1, 0.5, 1.0)
    print(f"{'step':26s}" + "".join(f"{step:16g}" for step in steps))
    print(f"{'weights':26s}" + f"{'bias':>9s}{'noise':>7s}" * len(steps))
    for name, weigh in kinds.items():
        cells = [policy_gradient(policy + step * random_policy(0), weigh) for step in steps]
        print(f"{name:26s}" + "".join(f"{round(relative_error(mean, exact), 6):9.3f}{noise / exact.norm():7.1f}"
                                      for mean, noise in cells))

    print("\nTop-p: mu is the policy on its nucleus. inside: the policy's probability of what mu can sample. Then the\n"
          "bias; last, the sequence-weighted gradient against that of E_pi[(r - b) inside], b = E_mu[r].\n")
    print(f"{'top-p':>6s}{'inside':>9s}{'no weights':>13s}{'token':>9s}{'sequence':>10s}{'  against the inside':>21s}")
    for top_p in (1.0, 0.95, 0.9, 0.8, 0.7, 0.5):
        sampler = top_p_logits(policy, top_p)
        mu = token_log_probs(sampler).sum(dim=1).exp()  # [15]
        inside, b = mu > 0, (mu * rewards).sum()
        part = -gradient(lambda x: (inside * token_log_probs(x).sum(dim=1).exp() * (rewards - b)).sum(), policy)
        means = [policy_gradient(sampler, kinds[name])[0] for name in ("no weights", "token", "sequence")]
        none, token, sequence = (round(relative_error(mean, exact), 6) for mean in means)
        print(f"{top_p:6g}{(inside * old.sum(dim=1).exp()).sum():9.3f}{none:13.3f}{token:9.3f}{sequence:10.3f}"
              f"{relative_error(means[2], part):21.0e}")


if __name__ == "__main__":
    main()
