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
2507.18071. Dr. GRPO is GRPO without 1/|o| and without the division by the standard deviation, so its
advantages are PMD-mean's. DAPO has a higher upper clip and no KL; it drops groups and shapes the reward (rewards.py).

What a baseline does to the expected gradient of G responses to one prompt, on policy [derived]:
- a constant, or anything that does not depend on the response itself: nothing. Leave-one-out is such a baseline.
- the group mean holds 1/G of the response's own reward: (G-1)/G of the true gradient. It acts as a learning rate.
- divided by the group's standard deviation, rewards 0 or 1: E[A | right] - E[A | wrong] times the true gradient. It
  depends on the success probability p, so prompts are weighted: about 1/sqrt(p (1-p)) for large G. Hard and easy
  prompts weigh more than those in between.

Arguments and results, the same for all:
    rewards         [N], group after group, finite; group_size divides N
    -> advantages   [N], or [N, T] for REINFORCE++; float32, or float64 for float64 rewards
    log_probs       [N, T] per token or [N] per response, in nats; the only argument that gets a gradient
    old_log_probs, ref_log_probs    that shape, in nats; ref_log_probs None: the reference is the sampler
    advantages      that shape or [N]
    beta            at least 0, in units of reward
    response_mask   [N, T], non-zero where a token of the response stands
    -> loss         per event, like log_probs; float32, or float64 for float64 log_probs
Half precision is widened to float32 first. ValueError for other shapes.

Departures, and why:
- No epsilon is added to a standard deviation. Where rewards are equal to rounding, the advantage is exactly 0. With
  a tiny epsilon instead, eight rewards of 0.7 get advantages of 0.8 from the rounding of their mean.
- The standard deviation is the sample's, with G - 1: torch's default. With G advantages are sqrt(G/(G-1)) larger.
- GRPO's paper has beta = 0.04. Here beta is an argument, 0 by default, so that one function is Dr. GRPO's and DAPO's.
- RLOO's paper has a KL to the reference in the reward. Here the reward is the verifier's alone, as for PMD and RPG's
  baselines, so that methods differ in one thing. With it: rewards - beta * k1 summed over the response (kl_estimators).
- REINFORCE++ is the paper's variant without groups, with PPO's clip. Its variant for groups, which takes the group's
  mean off the reward first, is not here.
- The aggregation of REINFORCE, RLOO and REINFORCE++ is this project's choice.

`python baselines.py` prints the advantages of one group by every method, and the factor on the true gradient.
"""
import torch


def reinforce_loss(log_probs, advantages):
    r"""REINFORCE, per event: -A log pi_theta, gradient -A grad log pi_theta.

    A = 0.5, pi_theta = 0.2: -0.5 log 0.2 = 0.805.
    Exact on policy, where tokens summed over a response are that response. Once theta has left the sampler it lacks
    the importance weight; rpg_losses.urkl_loss with beta = 0 has it.
    """
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("advantages must be [N] or have the shape of log_probs")
    a = advantages.detach().to(torch.promote_types(advantages.dtype, torch.float32))
    a = a if a.shape == log_probs.shape else a[:, None]  # [N, T], [N, 1] or [N]

    return -a * log_probs


def rloo_advantages(rewards, group_size):
    r"""RLOO: A_i = r_i - mean of the other rewards of its group (arXiv 2402.14740), in units of reward.

    [1, 0, 0, 0] gives [1, -1/3, -1/3, -1/3]. The same as pmd_mean_advantages(..., leave_one_out=True), which is
    G/(G-1) times r minus the group mean. Equal rewards give exact zeros.
    ValueError for rewards that are not finite, for a group of one, which has no others, and for uneven groups.
    """
    if rewards.dim() != 1 or group_size < 2 or len(rewards) % group_size or not rewards.isfinite().all():
        raise ValueError("rewards must be finite and [N] with N a multiple of group_size, and group_size at least 2")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    r = r - r.amin(dim=1, keepdim=True)  # [P, G], so that equal rewards are zeros, not a rounding error

    others = (r.sum(dim=1, keepdim=True) - r) / (group_size - 1)  # [P, G]
    return (r - others).reshape(-1)  # [N]


def grpo_advantages(rewards, group_size):
    r"""GRPO: A_i = (r_i - mean) / std over its group (arXiv 2402.03300), no unit. std has G - 1.

    [1, 0, 0, 0] gives [1.5, -0.5, -0.5, -0.5]: mean 1/4, std 1/2.
    A group of rewards that are equal to rounding gives exact zeros, and so does a group of one.
    ValueError for rewards that are not finite and for uneven groups.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size or not rewards.isfinite().all():
        raise ValueError("rewards must be finite and [N] with N a multiple of group_size")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    rounding = 8 * torch.finfo(r.dtype).eps * r.abs().amax(dim=1, keepdim=True)  # [P, 1]
    r = r - r.amin(dim=1, keepdim=True)  # [P, G]
    spread = r.amax(dim=1, keepdim=True)  # [P, 1]
    equal = spread <= rounding  # [P, 1]
    r = r / torch.where(equal, 1.0, spread)  # [P, G]; the scale cancels below, and no square underflows

    deviation = r - r.mean(dim=1, keepdim=True)  # [P, G]
    std = (deviation.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)).sqrt()  # [P, 1]
    return torch.where(equal, 0.0, deviation / std).reshape(-1)  # [N]


def reinforce_pp_advantages(rewards, old_log_probs, response_mask, beta=0.0, ref_log_probs=None):
    r"""REINFORCE++: token KL in the reward, then normalised over the whole batch (arXiv 2501.03262).

        A_t = r - beta sum_{s >= t} k1_s,     k1_s = log pi_old(y_s) - log pi_ref(y_s)
        A_t <- (A_t - mean) / std             over all response tokens of the batch

    -> [N, T], no unit, 0 outside the mask. Give it the whole batch, not a microbatch. ref_log_probs None: no KL.
    r = 1 with k1 = (0.2, 0.1) and beta = 0.5: (0.85, 0.95) before normalising.
    The KL is subtracted: a token that has become more likely than under the reference is worth less. Its gradient is
    that of E_theta[log(pi_old/pi_ref)]: on policy the reverse KL's, off policy not (kl_estimators.py).
    Values that are equal to rounding give exact zeros. Log-probs computed in half precision differ by more than that:
    take both from one pass. ValueError for shapes that do not match and for rewards that are not finite.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if response_mask.dim() != 2 or not old_log_probs.shape == ref.shape == response_mask.shape or \
            rewards.shape != ref.shape[:1]:
        raise ValueError("old_log_probs, ref_log_probs and response_mask must be [N, T] and rewards [N]")
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite")
    dtype, mask = torch.promote_types(old_log_probs.dtype, torch.float32), response_mask.bool()
    r, old, ref = (x.detach().to(dtype) for x in (rewards, old_log_probs, ref))  # [N], [N, T], [N, T]

    k1 = torch.where(mask, old - ref, 0.0)  # [N, T]
    to_go = k1.flip(1).cumsum(dim=1).flip(1)  # [N, T], sum over s >= t
    a = r[:, None] - beta * to_go  # [N, T]
    tokens = a[mask]  # [response tokens]
    # Two passes of one policy give log-probs that differ by rounding. Dividing by the spread of that would make it 1.
    # A log-prob is z_y - logsumexp(z), with logits z that are sums of many products. It is known to some tens of eps
    # (40 measured with the embedded model), times its own size where that is large. to_go adds up a whole response.
    k1_rounding = 64 * torch.where(k1 != 0, old.abs().clamp(min=1), 0.0).sum(dim=1)  # [N], in eps
    if not mask.any() or tokens.max() - tokens.min() <= \
            torch.finfo(dtype).eps * (8 * tokens.abs().max() + beta * k1_rounding.max()):
        return torch.zeros_like(a)
    return torch.where(mask, (a - tokens.mean()) / tokens.std(), 0.0)  # [N, T]


def grpo_loss(log_probs, old_log_probs, advantages, beta=0.0, ref_log_probs=None, eps_low=0.2, eps_high=0.2):
    r"""GRPO's loss per event: PPO's clip plus beta k3 (arXiv 2402.03300); with other settings Dr. GRPO's and DAPO's.

        -min(w A, clip(w, 1 - eps_low, 1 + eps_high) A) + beta k3(pi_ref / pi_theta)
        w = pi_theta/pi_old,     k3(y) = y - 1 - log y

    A > 0: no gradient once w > 1 + eps_high. A < 0: none once w < 1 - eps_low, but any w above keeps it.
    k3 stands here as commonly written, without the weight w. Its gradient on policy is that of KL(pi_ref || pi_theta),
    off policy of neither KL (RPG, Sec. 2.2; see kl_estimators.py). rpg_losses.urkl_loss is the corrected one.
    w = 2, A = 1: -1.2. w = 2, A = -1: 2. w = 1, A = 0, beta = 1, pi_theta = 0.4, pi_ref = 0.2: 0.5 - 1 + log 2 = 0.193.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    log_w, log_y = log_probs - old, ref - log_probs  # log(pi_theta / pi_old), log(pi_ref / pi_theta)
    w = torch.where(a < 0, log_w, log_w.clamp(max=88)).exp()  # for A >= 0 the clip bounds w, and e^88 is still finite
    # Where y is large it may be infinite, and 0 times that is nan: there beta goes into the exponent.
    log_beta = torch.tensor(beta, dtype=torch.float64).log().item()
    beta_k3 = torch.where(log_y < 1, beta * (torch.expm1(log_y.clamp(max=1)) - log_y),
                          (log_y + log_beta).exp() - beta * (1 + log_y))
    return -torch.minimum(w * a, w.clamp(1 - eps_low, 1 + eps_high) * a) + beta_k3


def gspo_loss(log_probs, old_log_probs, advantages, response_mask, eps_low=3e-4, eps_high=4e-4):
    r"""GSPO's loss per response [N]: PPO's clip on the sequence ratio (arXiv 2507.18071).

        -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A),     s = exp((1/|o|) sum_t log w_t),     w = pi_theta/pi_old

    Where alive the gradient is -s A (1/|o|) grad log pi_theta(y): every response counts the same, whatever its length.
    s is the geometric mean of the token ratios. Its logarithm is |o| times smaller than that of the response's own
    ratio, so the clip range must be far narrower than PPO's.
    Ratios of 2 and 1/2 make s = 1; 4 and 1 make s = 2.
    What stands at masked positions reaches neither value nor gradient. log_probs must be [N, T] and advantages [N].
    """
    if response_mask.dim() != 2 or not log_probs.shape == old_log_probs.shape == response_mask.shape or \
            advantages.shape != log_probs.shape[:1]:
        raise ValueError("log_probs, old_log_probs and response_mask must be [N, T] and advantages [N]")
    old, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, advantages))
    mask = response_mask.bool()  # [N, T]

    log_w = torch.where(mask, log_probs - old, 0.0)  # [N, T]
    log_s = log_w.sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # [N]
    s = torch.where(a < 0, log_s, log_s.clamp(max=88)).exp()  # for A >= 0 the clip bounds s, and e^88 is still finite
    return -torch.minimum(s * a, s.clamp(1 - eps_low, 1 + eps_high) * a)  # [N]


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
