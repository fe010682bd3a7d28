r"""KL estimators: k1, k2, k3 have values and gradients, and these need not belong to the same divergence.

From one sample x ~ p, with d = log p(x) - log q(x):

    k1 = d             unbiased for KL(p || q), noisy, may be negative
    k2 = d^2 / 2       biased, never negative
    k3 = e^-d - 1 + d  unbiased, never negative: the UKL of RPG, sample by sample (2505.17508, Remark 3.5, App. D)

A trainer has pi_theta and a reference, and two directions: the reverse KL(pi_theta || pi_ref), p = pi_theta, and the
forward KL(pi_ref || pi_theta), p = pi_ref. It does one of two things with the estimate:

    loss     adds beta k to the loss and differentiates it as it stands
    reward   subtracts beta k, detached, from the reward; the gradient is that of log pi_theta times k

Autograd differentiates a sample mean under a fixed sampler. That gives E_old[grad k]. It is not grad E_theta[k], as
pi_theta is also the distribution of the samples. Only a weight that contains pi_theta makes up for that. Hence, on
policy (2505.17508, Sec. 2.2): k1 as a loss has gradient 0, k2 has the reverse KL's, k3 the FORWARD KL's. The rest of
the table that `python kl_estimators.py` prints is [derived] by enumeration.

Which row is my trainer?
- k3, loss, no weight: GRPO's penalty as commonly written (`grpo_penalty`). Off policy it has neither KL's gradient. It
  is in verl (`low_var_kl`), nano-aha-moment, simple_GRPO, and TRL with `use_bias_correction_kl=False`.
- k3, loss, weighted: the corrected one (`corrected_grpo_penalty`): the reverse KL's gradient on and off policy, the
  same as rpg_losses.urkl_loss. TRL 1.16.0 does this by default (`use_bias_correction_kl=True`).
- k1, reward: REINFORCE++ (baselines.py), and RLOO in its paper. They compute k1 once, at pi_old. Weighted by
  pi_theta/pi_old, the gradient is that of E_theta[log(pi_old/pi_ref)]. On policy this is the reverse KL's; off policy
  the gradient of KL(pi_theta || pi_old) is missing [derived]. The table computes k1 at the current pi_theta. With the
  weight it then has the reverse KL's gradient off policy too.

`python kl_estimators.py` prints value, bias and standard deviation, then the gradient of every use, recognised among
the gradients of the three divergences that matter; it draws the same in runs/kl_estimators.png.
"""
import torch


def k1(log_p, log_q):
    r"""k1 = log p - log q at samples of p: an unbiased estimate of KL(p || q), in nats.

    log_p, log_q: one shape, else ValueError -> the same; float32, or float64 for float64.
    p = 0.4, q = 0.2: log 2 = 0.693. p = 0.2, q = 0.4: -0.693.
    As a loss at samples of p = pi_theta its expected gradient is 0: use it in the reward.
    """
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have one shape, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    dtype = torch.promote_types(log_p.dtype, torch.float32)
    return log_p.to(dtype) - log_q.to(dtype)


def k2(log_p, log_q):
    r"""k2 = (log p - log q)^2 / 2 at samples of p: a biased estimate of KL(p || q), in nats, good where p is near q.

    log_p, log_q: one shape, else ValueError -> the same; float32, or float64 for float64.
    p = 0.4, q = 0.2: (log 2)^2 / 2 = 0.240.
    As a loss at samples of p = pi_theta its expected gradient is that of KL(pi_theta || q).
    """
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have one shape, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    dtype = torch.promote_types(log_p.dtype, torch.float32)
    return (log_p.to(dtype) - log_q.to(dtype)).square() / 2


def k3(log_p, log_q):
    r"""k3 = q/p - 1 - log(q/p) at samples of p: an unbiased estimate of KL(p || q) that is never negative, in nats.

    log_p, log_q: one shape, else ValueError -> the same; float32, or float64 for float64.
    p = 0.4, q = 0.2: 0.5 - 1 + log 2 = 0.193.
    With masses other than 1 it is unbiased for UKL(p || q) = KL + sum (q - p) (2505.17508, Remark 3.5).
    As a loss at samples of p = pi_theta its expected gradient is that of KL(q || pi_theta), the other direction.
    """
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_p and log_q must have one shape, got {tuple(log_p.shape)} and {tuple(log_q.shape)}")
    dtype = torch.promote_types(log_p.dtype, torch.float32)
    log_ratio = log_q.to(dtype) - log_p.to(dtype)
    return torch.expm1(log_ratio) - log_ratio  # expm1: exp(x) - 1 loses all digits for small x


def grpo_penalty(log_probs, ref_log_probs):
    r"""GRPO's KL penalty as commonly written: k3(pi_ref/pi_theta) at samples of pi_old, without a weight.

    log_probs, ref_log_probs [N, T] or [N], in nats -> the same shape, in nats; times beta it is added to the loss.
    Expected gradient on policy: that of KL(pi_ref || pi_theta). Off policy: of neither KL.
    """
    if log_probs.shape != ref_log_probs.shape:
        raise ValueError("log_probs and ref_log_probs must have one shape, got "
                         f"{tuple(log_probs.shape)} and {tuple(ref_log_probs.shape)}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_ratio = ref_log_probs.detach().to(dtype) - log_probs.to(dtype)
    return torch.expm1(log_ratio) - log_ratio


def corrected_grpo_penalty(log_probs, old_log_probs, ref_log_probs):
    r"""GRPO's KL penalty with its importance weight: w k3(pi_ref/pi_theta), w = pi_theta/pi_old (2505.17508, Sec. 2.2).

    log_probs, old_log_probs, ref_log_probs [N, T] or [N], in nats -> the same shape, for the loss, times beta.
    Expected value and gradient: those of UKL(pi_theta || pi_ref), on and off policy. It is rpg_losses.urkl_loss's
    beta (w l - w) plus a constant: w (e^-l - 1 + l) = q + w l - w. The gradient must flow through w: with w detached it
    would be the forward KL's.
    """
    if not log_probs.shape == old_log_probs.shape == ref_log_probs.shape:
        raise ValueError("log_probs, old_log_probs and ref_log_probs must have one shape, got "
                         f"{tuple(log_probs.shape)}, {tuple(old_log_probs.shape)} and {tuple(ref_log_probs.shape)}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_p, log_old, log_ref = log_probs.to(dtype), old_log_probs.detach().to(dtype), ref_log_probs.detach().to(dtype)
    w, q, r = (log_p - log_old).exp(), (log_ref - log_old).exp(), log_ref - log_p
    # w k3 in two forms: the first keeps the digits near the reference, the second has no e^r, which overflows.
    return torch.where(r < 1, w * (torch.expm1(r.clamp(max=1)) - r), q - w * (1 + r))


def expected_gradient(use, estimator, direction, logits, old_logits, ref_logits):
    r"""E of the penalty's gradient over the responses of pi_old, exactly: [7, 3]. See USES for what `use` may be."""
    from enumeration import gradient, token_log_probs

    old, ref = (token_log_probs(x).sum(dim=1) for x in (old_logits, ref_logits))  # [15]

    def expected(x):
        log_probs = token_log_probs(x).sum(dim=1)  # [15]
        p, q = (log_probs, ref) if direction == "reverse" else (ref, log_probs)
        k = estimator(p, q)  # [15]
        w = (p - old).exp()  # [15], makes samples of pi_old count as samples of p
        if use == "loss":
            events = k
        elif use == "loss, weighted":
            events = w * k
        elif use == "loss, w detached":
            events = w.detach() * k
        elif use == "reward":
            events = k.detach() * log_probs
        elif use == "reward, weighted":
            events = (log_probs - old).exp().detach() * k.detach() * log_probs
        return (old.exp() * events).sum()

    return gradient(expected, logits)


# (use, on policy?). Weighted means by p/pi_old; a reward's gradient is weighted by pi_theta/pi_old.
USES = (("loss", True), ("loss", False), ("loss, weighted", False), ("loss, w detached", False), ("reward", True),
        ("reward", False), ("reward, weighted", False))


def recognise(got, logits, old_logits, ref_logits):
    r"""Names a gradient: an integer combination of those of R = KL(pi || ref), F = KL(ref || pi), O = KL(old || pi).

    0 where there is none; else 'neither'.
    """
    from enumeration import divergence, gradient, token_log_probs

    def kl(kind, x, reference):
        return divergence(kind, token_log_probs(x).sum(dim=1), token_log_probs(reference).sum(dim=1))

    basis = {"R": gradient(lambda x: kl("rkl", x, ref_logits), logits),
             "F": gradient(lambda x: kl("fkl", x, ref_logits), logits),
             "O": gradient(lambda x: kl("fkl", x, old_logits), logits)}
    if got.norm() < 1e-12:
        return "0"
    for r in (0, 1, -1):
        for f in (0, 1, -1):
            for o in (0, 1, -1):
                total = r * basis["R"] + f * basis["F"] + o * basis["O"]
                if (got - total).norm() < 1e-10 * got.norm():
                    signs = [(c, name) for c, name in ((r, "R"), (f, "F"), (o, "O")) if c]
                    return " ".join(("+" if c > 0 else "-") + name for c, name in signs)
    return "neither"


def main(argv=None):
    import argparse
    from pathlib import Path

    from enumeration import divergence, gradient, random_policy, relative_error, token_log_probs

    parser = argparse.ArgumentParser(description="What k1, k2 and k3 estimate, and which gradient each really gives.")
    parser.add_argument("--out", default="runs/kl_estimators.png", help="where the plot goes (default: %(default)s)")
    out = Path(parser.parse_args(argv).out)
    if out.exists() and not (out.is_file() and b"kl_estimators.py" in out.read_bytes()[:1000]):  # its title, set below
        parser.exit(2, f"kl_estimators.py: {out} was not made by this demo: give --out another name\n")
    estimators = {"k1": k1, "k2": k2, "k3": k3}
    ref_logits, direction_of_ref, old_logits = random_policy(0), random_policy(1), random_policy(2)

    def responses(x):
        return token_log_probs(x).sum(dim=1)  # [15]

    def moments(p, q):
        r"""KL(p || q), then bias and standard deviation of each estimator for one sample of p."""
        exact = divergence("rkl", p, q).item()
        rows = []
        for estimator in estimators.values():
            mean = (p.exp() * estimator(p, q)).sum()
            rows.append((mean.item() - exact, (p.exp() * (estimator(p, q) - mean).square()).sum().sqrt().item()))
        return exact, rows

    print("Value: bias and standard deviation of one sample, over the KL; pi_theta = pi_ref + step * a direction\n")
    print(f"{'direction':10s}{'step':>6s}{'KL, nats':>11s}"
          + "".join(f"{f'{name}: bias':>14s}{'std':>8s}" for name in estimators))
    for direction in ("reverse", "forward"):
        for step in (0.03, 0.3, 1.0):
            pair = [responses(ref_logits + step * direction_of_ref), responses(ref_logits)]
            exact, rows = moments(*(pair if direction == "reverse" else pair[::-1]))
            print(f"{direction:10s}{step:6g}{exact:11.2e}"
                  + "".join(f"{round(bias / exact, 4) + 0.0:14.4f}{std / exact:8.2f}" for bias, std in rows))

    print("\nGradient: which divergence's it is. R = KL(pi_theta || pi_ref), F = KL(pi_ref || pi_theta),\n"
          "O = KL(pi_old || pi_theta); neither = none of them, nor a sum. Weighted: samples of pi_old count p/pi_old,\n"
          "in a reward pi_theta/pi_old.\n")
    logits = ref_logits + direction_of_ref
    heads = (("loss, no weight", 22), ("weighted", 14), ("w detached", 14), ("reward, no weight", 24), ("weighted", 14))
    print(f"{'':14s}" + "".join(f"{head:>{width}s}" for head, width in heads))
    widths = (11, 11, 14, 14, 13, 11, 14)
    print(f"{'':14s}" + "".join(f"{'on policy' if on_policy else 'off':>{width}s}"
                                for (_, on_policy), width in zip(USES, widths)))
    for direction in ("reverse", "forward"):
        for name, estimator in estimators.items():
            cells = []
            for use, on_policy in USES:
                sampler = logits if on_policy else old_logits
                got = expected_gradient(use, estimator, direction, logits, sampler, ref_logits)
                cells.append(recognise(got, logits, sampler, ref_logits))
            print(f"{direction + ' ' + name:14s}" + "".join(f"{cell:>{w}s}" for cell, w in zip(cells, widths)))

    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (values, spreads, errors) = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    colors = dict(k1="tab:gray", k2="tab:orange", k3="tab:blue")
    d = torch.linspace(-2, 2, 200, dtype=torch.float64)
    for name, estimator in estimators.items():
        values.plot(d, estimator(d, torch.zeros_like(d)), color=colors[name], label=name)
    values.set(title="One sample's estimate of KL(p || q)", xlabel="log p(x)/q(x)  [nats]", ylabel="estimate  [nats]",
               ylim=(-2, 4.5))
    steps = torch.logspace(-2, 0.3, 30, dtype=torch.float64).tolist()
    points = [moments(responses(ref_logits + step * direction_of_ref), responses(ref_logits)) for step in steps]
    kls = [exact for exact, _ in points]
    for i, name in enumerate(estimators):
        spreads.plot(kls, [rows[i][1] / exact for exact, rows in points], color=colors[name], label=f"{name}: std")
    spreads.plot(kls, [abs(rows[1][0]) / exact for exact, rows in points], "--", color=colors["k2"], label="k2: |bias|")
    spreads.set(title="Error of one sample of pi_theta, over the KL", xlabel="KL(pi_theta || pi_ref)  [nats]",
                ylabel="relative to the KL", xscale="log", yscale="log")
    reverse = gradient(lambda x: divergence("rkl", responses(x), responses(ref_logits)), logits)
    forward = gradient(lambda x: divergence("fkl", responses(x), responses(ref_logits)), logits)
    away = torch.linspace(0, 1, 21).tolist()
    for use, wanted, line, color, label in (
        ("loss", reverse, "-", "tab:red", "k3, no weight (GRPO as written), against reverse KL"),
        ("loss", forward, "--", "tab:red", "the same against forward KL"),
        ("loss, weighted", reverse, "-", "tab:green", "w k3 (corrected), against reverse KL"),
    ):
        got = [expected_gradient(use, k3, "reverse", logits, logits + step * (old_logits - logits), ref_logits)
               for step in away]
        errors.plot(away, [relative_error(g, wanted) for g in got], line, color=color, label=label)
    errors.set(title="Off policy, GRPO's penalty follows neither KL", ylabel="relative error of the expected gradient",
               xlabel="sampler: 0 is pi_theta, 1 another policy  [step in logits]", ylim=(-0.5, 13.5))
    values.legend()
    spreads.legend(loc="center left", bbox_to_anchor=(0, 0.42))
    errors.legend(loc="upper left")
    for axes in (values, spreads, errors):
        axes.grid(alpha=0.3)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=120, format="png", metadata={"Title": "kl_estimators.py"})
    except OSError as error:
        parser.exit(2, f"kl_estimators.py: cannot write {out}: {error.strerror}\n")
    plt.close(figure)
    print(f"\nPlot: {out}")


if __name__ == "__main__":
    main()
