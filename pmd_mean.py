r"""PMD-mean: policy mirror descent with the mean reward in place of the log-partition function (arXiv 2602.05933).

The story, in the order of the functions below. y is a whole response, pi_t the policy that sampled it.

1. One step of mirror descent (Kimi k1.5, arXiv 2501.12599, eq. 2):   max_pi  E_pi[r] - tau KL(pi || pi_t).
2. Its solution is pi*(y) = pi_t(y) exp(r(y)/tau) / Z with Z = E_{pi_t}[exp(r/tau)].
3. Take logs: r - tau log Z = tau log(pi*/pi_t). So fit the log-ratio s = log pi_theta(y) - log pi_t(y), summed over
   the response's tokens, to a target. The squared loss (k1.5, unnumbered; the same in K2, arXiv 2507.20534, 3.2.3):
       L = E_{pi_t}[ (r - tau log Z - tau s)^2 ].
4. tau log Z must be guessed from a handful of responses to the prompt. The obvious guess, tau log mean_j exp(r_j/tau)
   (PMD-part), is far off when none of them is a winner. PMD-mean takes mean_j r_j, its limit as tau grows.
5. What that optimises instead: the same step with an adaptive mixed KL-chi2 regulariser (2602.05933). The weight of
   chi2 is tau lam / 2 with lam = KL(pi_t || pi) [derived]: it grows with the step. chi2 makes large ratios pi/pi_t
   expensive, so the step is small where reward is rare. As tau grows the two variants agree.

Departures from the sources, and why:
- The loss here is (tau/2)(A/tau - s)^2 = (A - tau s)^2 / (2 tau): L times 1/(2 tau). Same minimiser, and at s = 0 the
  gradient is the plain policy gradient, so learning rates mean the same for every tau.
- The authors' code (github.com/horizon-rl/OpenKimi) uses leave-one-out baselines; here they are an option.
- Their code clamps PMD-part's leave-one-out mean at 1e-8: at tau = 0.01 the only winner of 8 has A = 0.184, here A = 1.
- Their code divides each response's loss by its length by default. The formula does not, and neither does pmd_loss.
Of 2602.05933 only the abstract and the authors' code were available. Lines marked [derived] were worked out for this
file and are checked in tests/test_pmd_mean.py.

`python pmd_mean.py` prints one exact step of both variants (new success probability, lam) against success probability
p and tau, and how well each baseline is known from a few responses; it draws the same in runs/pmd_mean.png.
"""
import torch


def pmd_mean_advantages(rewards: torch.Tensor, group_size: int, leave_one_out: bool = False) -> torch.Tensor:
    r"""PMD-mean's A = r - mean_j r_j: tau log Z replaced by the mean reward of the prompt's group (k1.5, K2).

    rewards [N], group after group, N = prompts * group_size -> advantages [N] in units of reward; float32, or float64
    for float64 rewards. [1, 0, 0, 0] gives [0.75, -0.25, -0.25, -0.25].
    leave_one_out: r_i minus the mean of the others (RLOO, as in the authors' code), G/(G-1) times the above:
    [1, -1/3, -1/3, -1/3]. The expected policy gradient is the true one; with the group mean it is (G-1)/G of it.
    A group of equal rewards gives exact zeros. So does a group of one, which has no other response to compare with.
    Raises ValueError for rewards that are not 1-D and finite, uneven groups, leave_one_out with a group of one.
    """
    if rewards.dim() != 1 or not rewards.isfinite().all():
        raise ValueError("rewards must be 1-D, one per response, and finite")
    if group_size < 1 + leave_one_out or len(rewards) % group_size:
        raise ValueError(f"group_size must be at least 1 and divide the {len(rewards)} rewards, got {group_size}; "
                         "leave_one_out needs group_size >= 2")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    # The mean of eight float32 0.7 is not 0.7. Counting from the group's lowest reward makes equal rewards exact zeros.
    r = r - r.amin(dim=1, keepdim=True)  # [P, G]

    if leave_one_out:
        baseline = (r.sum(dim=1, keepdim=True) - r) / (group_size - 1)  # [P, G]
    else:
        baseline = r.mean(dim=1, keepdim=True)  # [P, 1]
    return (r - baseline).reshape(-1)  # [N]


def pmd_part_advantages(rewards: torch.Tensor, group_size: int, tau: float,
                        leave_one_out: bool = False) -> torch.Tensor:
    r"""PMD-part's A = r - tau log mean_j exp(r_j / tau): Z estimated from the prompt's group (k1.5).

    rewards [N], group after group, and tau in units of reward -> advantages [N]; float32, or float64 for float64
    rewards. [1, 0, 0, 0] at tau = 1 gives [0.643, -0.357, -0.357, -0.357]; tau -> infinity gives PMD-mean's.
    leave_one_out: the mean over j != i (as in the authors' code), [1, -0.453, -0.453, -0.453].
    A group of equal rewards, or of one, gives exact zeros.
    Raises ValueError for tau <= 0 and for what pmd_mean_advantages refuses.
    """
    if rewards.dim() != 1 or not rewards.isfinite().all():
        raise ValueError("rewards must be 1-D, one per response, and finite")
    if group_size < 1 + leave_one_out or len(rewards) % group_size:
        raise ValueError(f"group_size must be at least 1 and divide the {len(rewards)} rewards, got {group_size}; "
                         "leave_one_out needs group_size >= 2")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    r = rewards.double().reshape(-1, group_size)  # [P, G]
    # Row i: which rewards make the baseline of response i. With leave_one_out its own is masked, not subtracted later:
    # at small tau it is all of the sum, and nothing would be left of the others.
    others = torch.ones(group_size, group_size, dtype=torch.bool, device=r.device)  # [G, G]
    if leave_one_out:
        others.fill_diagonal_(False)
    best = r[:, None, :].masked_fill(~others, -float("inf")).amax(dim=-1)  # [P, G]
    # tau log mean exp(r / tau) = best + tau log(1 + mean(exp((r - best) / tau) - 1)): nothing overflows at small tau,
    # and at large tau, where the mean of exp rounds to 1, log1p and expm1 keep the digits.
    below = torch.expm1((r[:, None, :] - best[:, :, None]) / tau)  # [P, G, G]
    log_mean = torch.log1p(torch.where(others, below, 0.0).sum(dim=-1) / others.sum(dim=-1))  # [P, G]
    return (r - best - tau * log_mean).reshape(-1).to(torch.promote_types(rewards.dtype, torch.float32))  # [N]


def pmd_loss(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor,
             tau: float) -> torch.Tensor:
    r"""The regression, per response: (tau/2)(A/tau - s)^2, s = sum_t mask_t (log_probs_t - old_log_probs_t).

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, mask [N, T] bool or number,
    non-zero where a token of the response stands -> loss [N], float32, or float64 where an input is.
    A = 0.5, tau = 0.1, s = 0.2 gives 0.05 * 4.8^2 = 1.152. The mean over responses is the objective (k1.5, K2).

    Gradient: -(A - tau s) grad log pi_theta(y) (k1.5 eq. 3, there as ascent). At s = 0 that is REINFORCE with
    advantage A; afterwards tau s holds the response back. Nothing flows into old_log_probs or advantages, and what
    stands at masked positions (padding, inf, nan) reaches neither value nor gradient.
    Raises ValueError for tau <= 0 and for shapes that do not match.
    """
    if log_probs.dim() != 2 or not log_probs.shape == old_log_probs.shape == mask.shape:
        raise ValueError("log_probs, old_log_probs and mask must all be [N, T]")
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(f"advantages must be [N] = [{len(log_probs)}]")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    old = old_log_probs.detach().to(torch.promote_types(old_log_probs.dtype, torch.float32))  # half loses small ratios

    s = torch.where(mask.bool(), log_probs - old, 0.0).sum(dim=1)  # [N]; where, not a product: 0 * nan is nan
    return (advantages.detach() - tau * s).square() / (2 * tau)  # [N], = (tau/2)(A/tau - s)^2


def pmd_mean_policy(old_probs: torch.Tensor, rewards: torch.Tensor, tau: float) -> tuple:
    r"""What PMD-mean's regression converges to: the exact minimiser of E_{pi_t}[pmd_loss] over all policies.

    old_probs pi_t [K] (zeros allowed, they stay zero), rewards r [K], tau in units of reward -> (probs [K], lam []),
    both float64. Success probability 0.1, tau = 0.1, reward 1 or 0: new success probability 0.746, lam = 0.937.

    [derived] With A = r - E_{pi_t}[r], rho = pi/pi_t, s = log rho, the loss is stationary under sum pi = 1 where
        s + lam e^s = A/tau     <=>     rho = W(lam e^{A/tau}) / lam     (W: Lambert's W, principal branch)
    and E_{pi_t}[rho] = 1 fixes lam >= 0. Averaging over pi_t: lam = KL(pi_t || pi). The same pi maximises
        E_pi[r] - tau KL(pi || pi_t) - (tau lam / 2) chi2(pi || pi_t),     chi2 = E_{pi_t}[(rho - 1)^2],
    with lam held at this value: the paper's adaptive mixed KL-chi2 regulariser.
    Below about tau = max|A| / 700 the losers' probabilities may underflow to 0; lam is still right.
    Raises ValueError for shapes, probabilities, rewards or tau that make no sense, and where A / tau overflows.
    """
    if rewards.dim() != 1 or old_probs.shape != rewards.shape:
        raise ValueError("old_probs and rewards must both be [K], got "
                         f"{tuple(old_probs.shape)} and {tuple(rewards.shape)}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    old = old_probs.detach().double()  # [K]
    if not ((old >= 0).all() and abs(old.sum() - 1) < 1e-3):
        raise ValueError("old_probs must be non-negative and sum to 1")
    old = old / old.sum()  # float32 input sums to 1 only to 1e-7
    r = rewards.detach().double()  # [K]
    # Rewards of impossible outcomes do not matter. Counting from the best makes equal rewards exact zeros.
    r = torch.where(old > 0, r - r[old > 0].max(), 0.0)  # [K]
    if not r.isfinite().all():
        raise ValueError("rewards must be finite")
    a = (r - (old * r).sum()) / tau  # [K], A / tau
    if not a.isfinite().all():
        raise ValueError(f"tau is too small for these rewards: A / tau overflows at tau = {tau}")
    a = a - (old * a).sum()  # [K], again: 1 / tau has magnified the rounding error of the mean
    if a.max() <= 0:
        return old, a.new_zeros(())  # nothing to choose between: pi = pi_t, lam = 0

    # E_{pi_t}[e^s] falls as lam grows, so bisect; on log lam, because lam may be tiny. At lam = max a every s <= 0, so
    # the mass is at most 1. The other end lies below anything that float64 probabilities can ask for.
    low, high = a.max().log() - 800, a.max().log()
    log_old = old.log()  # [K], -inf where old_probs is 0
    for _ in range(60):
        log_lam = (low + high) / 2
        # s = u - log lam turns s + lam e^s = a into u + e^u = c, where nothing overflows. The left side is convex and
        # rising and both starts lie right of the root, so Newton never overshoots; 6 steps reach rounding.
        c = a + log_lam  # [K]
        u = torch.where(c < 1, c, c.clamp(min=1).log())  # [K]
        for _ in range(6):
            exp_u = u.exp()
            u = u - (u + exp_u - c) / (1 + exp_u)
        log_probs = log_old + u - log_lam  # [K]
        if log_probs.logsumexp(dim=0) > 0:
            low = log_lam
        else:
            high = log_lam
    return log_probs.softmax(dim=0), log_lam.exp()


def pmd_part_policy(old_probs: torch.Tensor, rewards: torch.Tensor, tau: float) -> torch.Tensor:
    r"""The solution of the mirror-descent step itself, k1.5 eq. 2: pi*(y) = pi_t(y) exp(r(y)/tau) / Z.

    old_probs pi_t [K] (zeros stay zero), rewards [K], tau in units of reward -> probs [K], float64.
    It is also the minimiser of E_{pi_t}[pmd_loss] when A = r - tau log Z with the true Z, where that loss is 0.
    Success probability 0.1, tau = 1, reward 1 or 0: 0.1 e / (0.9 + 0.1 e) = 0.232.
    Raises ValueError for shapes, probabilities, rewards or tau that make no sense.
    """
    if rewards.dim() != 1 or old_probs.shape != rewards.shape:
        raise ValueError("old_probs and rewards must both be [K], got "
                         f"{tuple(old_probs.shape)} and {tuple(rewards.shape)}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    old = old_probs.detach().double()  # [K]
    if not ((old >= 0).all() and abs(old.sum() - 1) < 1e-3):
        raise ValueError("old_probs must be non-negative and sum to 1")
    r = rewards.detach().double()  # [K]
    r = torch.where(old > 0, r - r[old > 0].max(), 0.0)  # [K], the best is 0, so exp cannot overflow
    if not r.isfinite().all():
        raise ValueError("rewards must be finite")
    return (old.log() + r / tau).softmax(dim=0)


def one_step(p: float, tau: float) -> tuple:
    r"""Reward 1 with probability p, else 0: new success probability of PMD-mean, of PMD-part, and lam, as floats."""
    old_probs = torch.tensor([p, 1 - p], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    mean, lam = pmd_mean_policy(old_probs, rewards, tau)
    return mean[0].item(), pmd_part_policy(old_probs, rewards, tau)[0].item(), lam.item()


def baseline_errors(p: float, tau: float, group_size: int) -> tuple:
    r"""RMS error of mean_j r_j against E[r], and of tau log mean_j exp(r_j/tau) against tau log Z. Exact: no sampling.

    Reward 1 with probability p, else 0, so the number of winners among group_size responses is binomial.
    """
    p = torch.tensor(p, dtype=torch.float64)
    winners = torch.arange(group_size + 1, dtype=torch.float64)
    probs = torch.distributions.Binomial(group_size, p).log_prob(winners).exp()  # [G + 1]
    share = winners / group_size  # [G + 1]

    def tau_log_z(q):  # tau log(q e^{1/tau} + 1 - q), with e^{1/tau} taken out: it overflows
        return 1 + tau * torch.log(q + (1 - q) * torch.exp(torch.tensor(-1 / tau, dtype=torch.float64)))

    mean_error = (probs * (share - p).square()).sum().sqrt()
    part_error = (probs * (tau_log_z(share) - tau_log_z(p)).square()).sum().sqrt()
    return mean_error.item(), part_error.item()


def main(argv=None):
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(description="One exact step of PMD-mean and PMD-part, as tables and a plot.")
    parser.add_argument("--out", default="runs/pmd_mean.png", help="where the plot goes (default: %(default)s)")
    out = Path(parser.parse_args(argv).out)
    if out.exists() and not (out.is_file() and b"pmd_mean.py" in out.read_bytes()[:1000]):  # its title, set below
        parser.exit(2, f"pmd_mean.py: {out} was not made by this demo: give --out another name\n")

    print("One exact step; reward 1 with probability p under pi_t, else 0. lam = KL(pi_t || pi) of PMD-mean, nats.\n")
    print("    tau       p  PMD-mean  PMD-part      lam")
    for tau in (0.01, 0.1, 1.0, 10.0):
        for p in (0.01, 0.1, 0.3, 0.5, 0.9):
            mean, part, lam = one_step(p, tau)
            print(f"{tau:7g} {p:7g} {mean:9.4f} {part:9.4f} {lam:8.4f}")
    print("\nRMS error of the baseline from G responses, in units of reward, each against its own limit; p = 0.1.\n")
    print("    tau       G  PMD-mean  PMD-part")
    for tau in (0.01, 0.1, 1.0):
        for group_size in (4, 16, 64):
            print(f"{tau:7g} {group_size:7d} {'%9.4f %9.4f' % baseline_errors(0.1, tau, group_size)}")

    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (steps, lams, errors) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    blue, orange = "tab:blue", "tab:orange"
    ps = torch.logspace(-3, -0.005, 40, dtype=torch.float64).tolist()
    for tau, line in ((0.1, "-"), (1.0, "--")):
        mean, part, lam = zip(*(one_step(p, tau) for p in ps))
        steps.plot(ps, part, line, color=orange, label=f"PMD-part, tau = {tau:g}")
        steps.plot(ps, mean, line, color=blue, label=f"PMD-mean, tau = {tau:g}")
        lams.plot(ps, lam, line, color=blue, label=f"PMD-mean, tau = {tau:g}")
    steps.plot(ps, ps, ":", color="gray", label="no step")
    steps.set(title="PMD-mean is careful where reward is rare", ylabel="success probability after one exact step")
    lams.set(title="lam, which sets the weight of chi2, grows with the step", ylabel="lam = KL(pi_t || pi)  [nats]",
             yscale="log")
    groups = list(range(2, 16)) + list(range(16, 129, 4))
    for p, line in ((0.1, "-"), (0.02, "--")):
        mean, part = zip(*(baseline_errors(p, 0.1, group_size) for group_size in groups))
        errors.plot(groups, part, line, color=orange, label=f"PMD-part, p = {p:g}")
        errors.plot(groups, mean, line, color=blue, label=f"PMD-mean, p = {p:g}")
    errors.axvline(16, color="gray", linestyle=":", label="G = 16, as in the papers")
    errors.set_xscale("log", base=2)
    errors.set_xticks([2, 4, 8, 16, 32, 64, 128], labels=[2, 4, 8, 16, 32, 64, 128])
    errors.set(title="The mean needs fewer responses than log Z", xlabel="responses per prompt G",
               ylabel="RMS error of the baseline  [units of reward]", ylim=(0, 1))
    for axes in (steps, lams):
        axes.set(xlabel="success probability p before the step", xscale="log")
    steps.legend(loc="center left", bbox_to_anchor=(0.0, 0.7))
    lams.legend()
    errors.legend(title="tau = 0.1", ncols=2)
    for axes in (steps, lams, errors):
        axes.grid(alpha=0.3)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120, format="png", metadata={"Title": "pmd_mean.py"})
    except OSError as error:
        parser.exit(2, f"pmd_mean.py: cannot write {out}: {error.strerror}\n")
    plt.close(figure)
    print(f"\nPlot: {out}")


if __name__ == "__main__":
    main()
