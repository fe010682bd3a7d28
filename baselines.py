r"""Baselines: what PMD-mean and RPG compare with, each as its advantages, its loss per event, and how events are added.

    method        advantages                        loss                           aggregate mode (aggregation.py)
    REINFORCE     rewards minus any constant        reinforce_loss                 seq-mean-token-sum
    RLOO          rloo_advantages                   reinforce_loss                 seq-mean-token-sum
    GRPO          grpo_advantages                   grpo_loss, beta > 0            seq-mean-token-mean
    Dr. GRPO      pmd_mean.pmd_mean_advantages      grpo_loss                      seq-mean-token-sum-norm
    DAPO          grpo_advantages                   grpo_loss, eps_high=0.28       token-mean
    REINFORCE++   reinforce_pp_advantages           grpo_loss                      token-mean
    GSPO          grpo_advantages                   gspo_loss                      seq-mean-token-sum

Sources: RLOO arXiv 2402.14740, GRPO 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476, REINFORCE++ 2501.03262, GSPO
2507.18071. Dr. GRPO is GRPO without the division by the standard deviation and without 1/|o|: with both gone its
advantages are PMD-mean's. DAPO has a higher upper clip, no KL, filters groups (`mixed_groups`) and penalises length
near the limit (`overlong_penalty`). `length_reward` is Kimi k1.5's (2501.12599, section 2.3).

What a baseline does to the expected gradient of G responses to one prompt, on policy [derived]:
- a constant, or anything that does not depend on the response itself: nothing. Leave-one-out is such a baseline.
- the group mean holds 1/G of the response's own reward: (G-1)/G of the true gradient. A learning rate.
- divided by the group's standard deviation, rewards 0 or 1: E[A | right] - E[A | wrong] times the true gradient. It
  depends on the success probability p, so prompts are weighted: about 1/sqrt(p (1-p)) for large G, hard and easy
  prompts above those in between.

Departures, and why:
- No epsilon is added to a standard deviation. Where rewards are equal to rounding, the advantage is exactly 0; with
  a tiny epsilon instead, eight rewards of 0.7 get advantages of 0.8 from the rounding of their mean.
- The standard deviation is the sample's, with G - 1: torch's default. With G advantages are sqrt(G/(G-1)) larger.
- The clip of REINFORCE++ and the aggregation of REINFORCE, RLOO and REINFORCE++ are this project's choice.

`python baselines.py` prints the advantages of one group by every method, and the factor on the true gradient.
"""
import torch


def reinforce_loss(log_probs, advantages):
    r"""REINFORCE, per event: -A log pi_theta, gradient -A grad log pi_theta.

    log_probs [N, T] per token or [N] per response, in nats; advantages [N] or that shape, in units of reward -> loss
    like log_probs; float32, or float64 for float64 log_probs. A = 0.5, pi_theta = 0.2: -0.5 log 0.2 = 0.805.
    Exact on policy, where tokens summed over a response are that response. Once theta has left the sampler it lacks
    the importance weight; rpg_losses.urkl_loss with beta = 0 has it.
    ValueError for other shapes.
    """
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("advantages must be [N] or have the shape of log_probs, got "
                         f"{tuple(advantages.shape)} and {tuple(log_probs.shape)}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_probs.dim() - advantages.dim()))  # [N, 1]
    return -a * log_probs.to(dtype)


def rloo_advantages(rewards, group_size):
    r"""RLOO: A_i = r_i - mean of the other rewards of its group (arXiv 2402.14740).

    rewards [N], group after group -> [N], in units of reward; float32, or float64 for float64 rewards.
    [1, 0, 0, 0] gives [1, -1/3, -1/3, -1/3]. The same as pmd_mean_advantages(..., leave_one_out=True), which is
    G/(G-1) times r minus the group mean. Equal rewards give exact zeros.
    ValueError for a group of one, which has no others, and for groups that do not divide.
    """
    if rewards.dim() != 1 or group_size < 2 or len(rewards) % group_size:
        raise ValueError("rewards must be [N] with N a multiple of group_size, and group_size at least 2; got "
                         f"{tuple(rewards.shape)} and {group_size}")
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    r = r - r.amin(dim=1, keepdim=True)  # [P, G], so that equal rewards are zeros, not a rounding error
    others = (r.sum(dim=1, keepdim=True) - r) / (group_size - 1)  # [P, G]
    return (r - others).reshape(-1)  # [N]


def grpo_advantages(rewards, group_size):
    r"""GRPO: A_i = (r_i - mean) / std over its group (arXiv 2402.03300).

    rewards [N], group after group -> [N], no unit; float32, or float64 for float64 rewards. std has G - 1.
    [1, 0, 0, 0] gives [1.5, -0.5, -0.5, -0.5]: mean 1/4, std 1/2.
    A group of rewards that are equal to rounding gives exact zeros, and so does a group of one.
    ValueError for groups that do not divide.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError("rewards must be [N] with N a multiple of group_size, got "
                         f"{tuple(rewards.shape)} and {group_size}")
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    rounding = 8 * torch.finfo(r.dtype).eps * r.abs().amax(dim=1, keepdim=True)  # [P, 1]
    r = r - r.amin(dim=1, keepdim=True)  # [P, G]
    spread = r.amax(dim=1, keepdim=True)  # [P, 1]
    equal = spread <= rounding  # [P, 1]
    r = r / torch.where(equal, 1.0, spread)  # [P, G], the scale cancels below; now no square underflows
    deviation = r - r.mean(dim=1, keepdim=True)  # [P, G]
    std = (deviation.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)).sqrt()  # [P, 1]
    return torch.where(equal, 0.0, deviation / std).reshape(-1)  # [N]


def reinforce_pp_advantages(rewards, old_log_probs, response_mask, beta=0.0, ref_log_probs=None):
    r"""REINFORCE++: token KL in the reward, then normalised over the whole batch (arXiv 2501.03262).

        A_t = r - beta sum_{s >= t} k1_s,     k1_s = log pi_old(y_s) - log pi_ref(y_s)
        A_t <- (A_t - mean) / std             over all response tokens of the batch

    rewards [N] and beta in units of reward, old_log_probs, ref_log_probs [N, T] in nats, response_mask [N, T] ->
    [N, T], 0 outside the mask; no unit; float32, or float64 for float64 old_log_probs. Give it the whole batch, not a
    microbatch. ref_log_probs None: no KL. r = 1 with k1 = (0.2, 0.1) and beta = 0.5: (0.85, 0.95) before normalising.
    The KL is subtracted: a token that has become more likely than under the reference is worth less.
    Values that are equal to rounding give exact zeros. ValueError for shapes that do not match.
    """
    ref_log_probs = old_log_probs if ref_log_probs is None else ref_log_probs
    if response_mask.dim() != 2 or not old_log_probs.shape == ref_log_probs.shape == response_mask.shape or \
            rewards.shape != old_log_probs.shape[:1]:
        raise ValueError("old_log_probs, ref_log_probs and response_mask must be [N, T] and rewards [N], got "
                         f"{[tuple(x.shape) for x in (old_log_probs, ref_log_probs, response_mask, rewards)]}")
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite")
    dtype = torch.promote_types(old_log_probs.dtype, torch.float32)
    mask, log_old = response_mask.bool(), old_log_probs.detach().to(dtype)  # [N, T]
    k1 = torch.where(mask, log_old - ref_log_probs.detach().to(dtype), 0.0)  # [N, T]
    to_go = k1.flip(1).cumsum(dim=1).flip(1)  # [N, T], sum over s >= t
    a = rewards.detach().to(dtype)[:, None] - beta * to_go  # [N, T]
    tokens = a[mask]  # [response tokens]
    # Two passes of one policy give log-probs that differ by rounding, and dividing by its spread would make it 1. A
    # log-prob is z_y - logsumexp(z) of logits z, each a sum of many products: some tens of eps nats (40 were measured
    # with the embedded model), more where it is large. Sums over a response may add up what its tokens have.
    k1_rounding = 64 * torch.where(k1 != 0, log_old.abs().clamp(min=1), 0.0).sum(dim=1)  # [N], in eps
    rounding = torch.finfo(dtype).eps * (8 * tokens.abs().max() + beta * k1_rounding.max()) if len(tokens) else 0.0
    if len(tokens) == 0 or tokens.max() - tokens.min() <= rounding:
        return torch.zeros_like(a)
    return torch.where(mask, (a - tokens.mean()) / tokens.std(), 0.0)  # [N, T]


def grpo_loss(log_probs, old_log_probs, advantages, beta=0.0, ref_log_probs=None, eps_low=0.2, eps_high=0.2):
    r"""GRPO's loss per event: PPO's clip plus beta k3 (arXiv 2402.03300); with other settings Dr. GRPO's and DAPO's.

        -min(w A, clip(w, 1 - eps_low, 1 + eps_high) A) + beta k3(pi_ref / pi_theta)
        w = pi_theta/pi_old,     k3(y) = y - 1 - log y

    A > 0: no gradient once w > 1 + eps_high. A < 0: none once w < 1 - eps_low, but any w above keeps it.
    k3 stands here as commonly written, without the weight w: its gradient on policy is that of KL(pi_ref || pi_theta),
    off policy of neither KL (RPG, Sec. 2.2; see kl_estimators.py). rpg_losses.urkl_loss is the corrected one.

    log_probs, old_log_probs, ref_log_probs [N, T] per token or [N] per response, in nats; advantages [N] or that
    shape -> loss per event, like log_probs; float32, or float64 for float64 log_probs.
    w = 2, A = 1: -1.2. w = 2, A = -1: 2. w = 1, A = 0, beta = 1, pi_theta = 0.4, pi_ref = 0.2: 0.5 - 1 + log 2 = 0.193.
    ref_log_probs None: the reference is the sampler. Gradient flows into log_probs only. ValueError for other shapes.
    """
    ref_log_probs = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref_log_probs.shape or \
            advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, ref_log_probs, advantages)]}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)  # exp overflows in half precision
    log_p, log_old, log_ref = log_probs.to(dtype), old_log_probs.detach().to(dtype), ref_log_probs.detach().to(dtype)
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_p.dim() - advantages.dim()))  # [N, 1]
    log_w, r = log_p - log_old, log_ref - log_p  # [N, T] or [N]
    w = torch.where(a < 0, log_w, log_w.clamp(max=88)).exp()  # pi_theta / pi_old; e^88 is finite and beyond the clip
    # beta (e^r - 1 - r) in two forms. expm1 keeps the digits of a small r. Where r is large, e^r may be infinite, and
    # 0 times that is nan: there beta goes into the exponent.
    log_beta = torch.tensor(beta, dtype=torch.float64).log().item()
    beta_k3 = torch.where(r < 1, beta * (torch.expm1(r.clamp(max=1)) - r), (r + log_beta).exp() - beta * (1 + r))
    return -torch.minimum(w * a, w.clamp(1 - eps_low, 1 + eps_high) * a) + beta_k3


def gspo_loss(log_probs, old_log_probs, advantages, response_mask, eps_low=3e-4, eps_high=4e-4):
    r"""GSPO's loss per response: PPO's clip on the sequence ratio (arXiv 2507.18071).

        -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A),     s = exp((1/|o|) sum_t log w_t),     w = pi_theta/pi_old

    Where alive the gradient is -s A (1/|o|) grad log pi_theta(y): every response counts the same, whatever its length.
    s is the geometric mean of the token ratios, |o| times closer to 1 in log than the response's own ratio, so the
    clip range must be far narrower than PPO's.

    log_probs, old_log_probs [N, T] in nats, advantages [N], response_mask [N, T] non-zero where a token stands -> [N];
    float32, or float64 for float64 log_probs. Ratios of 2 and 1/2 make s = 1; 4 and 1 make s = 2.
    What stands at masked positions reaches neither value nor gradient. ValueError for other shapes.
    """
    if response_mask.dim() != 2 or not log_probs.shape == old_log_probs.shape == response_mask.shape or \
            advantages.shape != log_probs.shape[:1]:
        raise ValueError("log_probs, old_log_probs and response_mask must be [N, T] and advantages [N], got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, response_mask, advantages)]}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    mask = response_mask.bool()  # [N, T]
    log_w = torch.where(mask, log_probs.to(dtype) - old_log_probs.detach().to(dtype), 0.0)  # [N, T]
    a = advantages.detach().to(dtype)  # [N]
    log_s = log_w.sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # [N]
    s = torch.where(a < 0, log_s, log_s.clamp(max=88)).exp()  # [N]; e^88 is finite and beyond the clip
    return -torch.minimum(s * a, s.clamp(1 - eps_low, 1 + eps_high) * a)  # [N]


def mixed_groups(correct, group_size):
    r"""Which responses to keep: those of groups neither all right nor all wrong (DAPO, arXiv 2503.14476; RPG too).

    correct [N] bool or number, group after group -> [N] bool, the same within a group.
    [1, 0, 0, 0] with group_size 2 gives [True, True, False, False].
    Pass what is verified, without shaping: a length penalty makes groups differ that teach nothing.
    ValueError for groups that do not divide.
    """
    if correct.dim() != 1 or group_size < 1 or len(correct) % group_size:
        raise ValueError("correct must be [N] with N a multiple of group_size, got "
                         f"{tuple(correct.shape)} and {group_size}")
    groups = correct.reshape(-1, group_size)  # [P, G]
    return (groups != groups[:, :1]).any(dim=1).repeat_interleave(group_size)  # [N]


def overlong_penalty(lengths, max_new_tokens, buffer):
    r"""DAPO's penalty for responses near the limit, to be added to the rewards (arXiv 2503.14476).

    0 up to max_new_tokens - buffer, then falling linearly to -1 at max_new_tokens, -1 beyond.
    lengths [N] in tokens -> [N] float32, in units of reward. max_new_tokens 100, buffer 20: 80 gives 0, 85 gives -0.25.
    ValueError unless 0 < buffer <= max_new_tokens.
    """
    if not 0 < buffer <= max_new_tokens:
        raise ValueError(f"buffer must be positive and at most max_new_tokens = {max_new_tokens}, got {buffer}")
    return ((max_new_tokens - buffer - lengths.float()) / buffer).clamp(-1, 0)


def length_reward(correct, lengths, group_size):
    r"""Kimi k1.5's reward for being short, to be added to the rewards (arXiv 2501.12599, section 2.3).

        lambda = 0.5 - (len - min) / (max - min)    over the group
        lambda where right, min(0, lambda) where wrong, 0 everywhere if all lengths are equal

    correct [N] bool or number, non-zero where right; lengths [N] in tokens; group after group -> [N] float32, in units
    of reward. Lengths 10, 20, 30 with the last wrong: 0.5, 0, -0.5. A short wrong answer gains nothing.
    ValueError for shapes that do not match and groups that do not divide.
    """
    if lengths.dim() != 1 or correct.shape != lengths.shape or group_size < 1 or len(lengths) % group_size:
        raise ValueError("correct and lengths must be [N] with N a multiple of group_size, got "
                         f"{tuple(correct.shape)}, {tuple(lengths.shape)} and {group_size}")
    length = lengths.float().reshape(-1, group_size)  # [P, G]
    shortest, longest = length.amin(dim=1, keepdim=True), length.amax(dim=1, keepdim=True)  # [P, 1]
    lam = 0.5 - (length - shortest) / (longest - shortest).clamp(min=1)  # [P, G]
    lam = torch.where(longest > shortest, lam, 0.0).reshape(-1)  # [N]
    return torch.where(correct.bool(), lam, lam.clamp(max=0))  # [N]


def main():
    from pmd_mean import pmd_mean_advantages

    methods = {"group mean": pmd_mean_advantages, "leave one out": rloo_advantages, "standardised": grpo_advantages}
    print("Advantages of one group of 8, by rewards\n")
    print(f"{'rewards':32s}" + "".join(f"{name:>26s}" for name in methods) + "\n" + " " * 32
          + f"{'highest':>14s}{'lowest':>12s}" * 3)
    for rewards in ([1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0], [0.7] * 8):
        r = torch.tensor(rewards, dtype=torch.float32)
        values = [advantages(r, 8) for advantages in methods.values()]
        print(f"{' '.join(f'{x:g}' for x in rewards):32s}" + "".join(f"{a.max():14.3f}{a.min():12.3f}" for a in values))

    print("\nExpected gradient over the true one, on policy, rewards 0 or 1, success probability p: A(right) -\n"
          "A(wrong), averaged over the other G - 1 responses. Last column: where the third tends, 1/sqrt(p(1-p)).\n")
    print("  G     p" + "".join(f"{name:>16s}" for name in methods) + f"{'G to infinity':>16s}")
    for group_size in (2, 8, 16):
        others = torch.arange(group_size, dtype=torch.float64)  # [G], winners among the others
        # Row k: the response itself, then k winners and G - 1 - k losers.
        rest = (torch.arange(group_size - 1) < others[:, None]).double()  # [G, G-1]
        for p in (0.01, 0.1, 0.5, 0.9):
            binomial = torch.distributions.Binomial(group_size - 1, torch.tensor(p, dtype=torch.float64))
            weight = binomial.log_prob(others).exp()  # [G]
            factors = []
            for advantages in methods.values():
                right, wrong = (advantages(torch.cat([own.expand(group_size, 1), rest], dim=1).flatten(), group_size)
                                .reshape(group_size, group_size)[:, 0] for own in torch.tensor([1.0, 0.0]).double())
                factors.append((weight * (right - wrong)).sum().item())
            print(f"{group_size:3d}{p:6g}" + "".join(f"{factor:16.4f}" for factor in factors)
                  + f"{(p * (1 - p)) ** -0.5:16.4f}")


if __name__ == "__main__":
    main()
