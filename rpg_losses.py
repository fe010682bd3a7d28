r"""RPG: policy-gradient losses whose KL penalty has the right weight off policy (arXiv 2505.17508v4).

Objective (to maximise):   J = E_{pi_theta}[R] - beta D,   estimated from responses y ~ pi_old, an earlier policy.

An expectation under pi_theta needs the importance weight w = pi_theta/pi_old. So does the KL. Its weight depends on
its direction and on its mass terms. D is one of four (Props. E.1, E.3, 3.2, 3.6):

    D                                  weight of grad log pi_theta in grad J      differentiable loss (Tables 1 and 4)
    fkl    KL(pi_ref || pi_theta)      w R + beta q                               -w R - beta q log pi_theta
    rkl    KL(pi_theta || pi_ref)      w (R - beta (l + 1))                       w (-R + beta l)
    ufkl  UKL(pi_ref || pi_theta)      w R - beta (w - q)                         -w R + beta (w - q l - q)
    urkl  UKL(pi_theta || pi_ref)      w (R - beta l)                             -w R + beta (w l - w)

    w = pi_theta/pi_old     l = log(pi_theta/pi_ref)     q = pi_ref/pi_old
    UKL(p || q) = sum p log(p/q) + sum (q - p): the KL of measures that need not sum to one (Def. 3.1, 3.4)

In the paper the reference is the sampler: pi_ref = pi_old, so q = 1 and l = log w. For another reference the weights
and losses above are [derived]; at q = 1 they are the paper's. A = R - b may stand for R: a constant b changes no
expected gradient of a normalised policy. The paper takes the group mean and does not divide by the standard deviation.

Two styles have the same gradient (Prop. 4.1). The differentiable loss is differentiated through w and l. The REINFORCE
style is -stopgrad(weight) log pi_theta (Table 2, App. F); its value means nothing.

Arguments and result of every loss:
    log_probs       [N, T]: an event is a token. [N]: an event is a whole response, with its summed log-prob. In nats.
    old_log_probs   that shape, in nats
    advantages      A, that shape or [N], in units of reward
    beta            at least 0, in units of reward
    ref_log_probs   that shape, in nats; None: the reference is the sampler
    ->              loss per event, like log_probs; float32, or float64 for float64 log_probs
Gradient flows into log_probs only. Half precision is widened to float32 first. ValueError for other shapes. Each
function runs alone, pasted under `import torch`; that is why each repeats its preparation.

With whole responses every gradient is exact. With tokens w is the token's own, the usual approximation: exact at
pi_theta = pi_old = pi_ref, biased elsewhere. What token losses follow exactly is enumeration.token_objective.

RPG-Style Clip (Sec. 3.3, Alg. 1; Sec. 4.1, Alg. 2) works on the regularised advantage Ahat = weight / w. The paper has
rkl and urkl; fkl and ufkl are [derived] with q / w = e^-l:

    fkl  A + beta e^-l      rkl  A - beta (l + 1)      ufkl  A - beta (1 - e^-l)      urkl  A - beta l

Departures from the paper, and why:
- Ahat is detached in dual_clip_loss. Algorithm 1 as printed lets the gradient through w AND Ahat. For urkl and rkl the
  weight of an event is then off by beta w from Props. 3.6 and E.3. [derived] Over all responses of a normalised policy
  E_old[beta w grad log pi_theta] = beta sum grad pi_theta = 0, so without clipping this adds only noise. Clipping takes
  a part out of that sum and leaves a bias. Clipped events, which should have zero gradient, move too. For fkl and ufkl,
  w Ahat holds the KL as beta q, which theta does not change: as printed, no penalty is left.
- c is 3 by default, as in most trainers with PPO's dual clip. The paper asks for c > 1; its scripts have c = 10, and so
  has train.py.
- Z_old, the mass of an unnormalised pi_old, is left out: it scales the loss, and is 1 for a language model.
- No clamp on log-ratios or penalties (the authors' code has [-10, 10]): it bounds the value and kills the gradient.
  Value and gradient are finite and right for every ratio that float32 can hold. Beyond, from log w = 88.7 on, a loss
  without a clip is infinite (nan where w multiplies 0), and the update should be skipped.

`python rpg_losses.py` prints the certificate: the worst relative error of each loss's expected gradient, by enumeration
(see enumeration.py); then the bias of token ratios, and Algorithm 1 as printed.
"""
import torch


def fkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""FKL: -E[R] + beta KL(pi_ref || pi_theta), differentiable (Prop. E.1, Tables 1 and 4).

        -w A - beta q log pi_theta,     gradient -(w A + beta q) grad log pi_theta
    pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 - 0.1 log 0.4 = -1.908, weight 2.1.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, q = (log_probs - old).exp(), (ref - old).exp()  # pi_theta / pi_old, pi_ref / pi_old
    return -w * a - beta * q * log_probs


def rkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""RKL: -E[R] + beta KL(pi_theta || pi_ref), differentiable (Prop. E.3, Tables 1 and 4).

        w (-A + beta l),     gradient -(w (A - beta (l + 1))) grad log pi_theta
    pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: 2 (-1 + 0.1 log 2) = -1.861, weight 1.661.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, l = (log_probs - old).exp(), log_probs - ref  # pi_theta / pi_old, log(pi_theta / pi_ref)
    return w * (-a + beta * l)


def ufkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""UFKL: -E[R] + beta UKL(pi_ref || pi_theta), differentiable (Prop. 3.2, Tables 1 and 4).

        -w A + beta (w - q l - q),     gradient -(w A - beta (w - q)) grad log pi_theta
    pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 + 0.1 (2 - log 2 - 1) = -1.969, weight 1.9.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, q = (log_probs - old).exp(), (ref - old).exp()  # pi_theta / pi_old, pi_ref / pi_old
    l = log_probs - ref  # log(pi_theta / pi_ref)
    # -w a plus beta (w - q l - q), with all that w multiplies in one term: no inf - inf
    return w * (-a + beta) - beta * (q * l + q)


def urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""URKL: -E[R] + beta UKL(pi_theta || pi_ref), differentiable (Prop. 3.6, Tables 1 and 4).

        -w A + beta (w l - w),     gradient -(w (A - beta l)) grad log pi_theta
    pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 + 0.1 (2 log 2 - 2) = -2.061, weight 1.861.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, l = (log_probs - old).exp(), log_probs - ref  # pi_theta / pi_old, log(pi_theta / pi_ref)
    # -w a plus beta (w l - w), with all that w multiplies in one term: no inf - inf
    return w * (-a + beta * (l - 1))


def reinforce_fkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""FKL, REINFORCE style: -stopgrad(w A + beta q) log pi_theta (Table 2, App. F, Prop. 4.1).

    The gradient of fkl_loss. pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2.1 log 0.4 = 1.924.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, q = (log_probs - old).exp(), (ref - old).exp()  # pi_theta / pi_old, pi_ref / pi_old
    return -(w * a + beta * q).detach() * log_probs


def reinforce_rkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""RKL, REINFORCE style: -stopgrad(w (A - beta (l + 1))) log pi_theta (Table 2, App. F, Prop. 4.1).

    The gradient of rkl_loss. pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -1.661 log 0.4 = 1.522.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, l = (log_probs - old).exp(), log_probs - ref  # pi_theta / pi_old, log(pi_theta / pi_ref)
    return -(w * (a - beta * (l + 1))).detach() * log_probs


def reinforce_ufkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""UFKL, REINFORCE style: -stopgrad(w A - beta (w - q)) log pi_theta (Table 2, App. F, Prop. 4.1).

    The gradient of ufkl_loss. pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -1.9 log 0.4 = 1.741.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, q = (log_probs - old).exp(), (ref - old).exp()  # pi_theta / pi_old, pi_ref / pi_old
    return -(w * a - beta * (w - q)).detach() * log_probs


def reinforce_urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""URKL, REINFORCE style: -stopgrad(w (A - beta l)) log pi_theta (Table 2, App. F, Prop. 4.1).

    The gradient of urkl_loss. pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -1.861 log 0.4 = 1.706.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]

    w, l = (log_probs - old).exp(), log_probs - ref  # pi_theta / pi_old, log(pi_theta / pi_ref)
    return -(w * (a - beta * l)).detach() * log_probs


def dual_clip_loss(log_probs, old_log_probs, advantages, beta, kl="urkl", eps_low=0.2, eps_high=0.28, c=3.0,
                   ref_log_probs=None):
    r"""RPG-Style Clip, differentiable (Sec. 3.3, Alg. 1), with Ahat detached; the top of the file says why.

        Ahat = A - beta l for urkl, l = log(pi_theta / pi_ref); all four stand at the top of the file
        Ahat >= 0:   max(-w Ahat, -clip(w, 1 - eps_low, 1 + eps_high) Ahat) = -min(w, 1 + eps_high) Ahat
        Ahat <  0:   min(that, -c Ahat)                                     = -clip(w, 1 - eps_low, c) Ahat

    The right side is -u Ahat with a clipped ratio u. Where u = w it has the gradient of the unclipped loss, elsewhere
    none. c > 1 bounds the loss of a bad event that became likely. ValueError for another kl and for c <= 1.
    w = 2, A = 1, beta = 0: clipped to -1.28. w = 2, A = -1: not clipped, 2. w = 4, A = -1: 3, zero gradient.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]
    if kl not in ("fkl", "rkl", "ufkl", "urkl"):
        raise ValueError(f"unknown kl {kl!r}: use fkl, rkl, ufkl or urkl")
    if c <= 1:
        raise ValueError(f"c must be larger than 1, got {c}")

    kl = kl if beta else "urkl"  # without beta all four are the same, and 0 times an infinite e^-l would be nan
    log_w, l = log_probs - old, (log_probs - ref).detach()  # log(pi_theta / pi_old), log(pi_theta / pi_ref)
    a_hat = {"fkl": a + beta * (-l).exp(), "rkl": a - beta * (l + 1), "ufkl": a - beta * (1 - (-l).exp()),
             "urkl": a - beta * l}[kl]  # weight / w
    low, high, top = torch.tensor([max(0, 1 - eps_low), 1 + eps_high, c], dtype=torch.float64).log().tolist()
    log_u = torch.where(a_hat >= 0, log_w.clamp(max=high), log_w.clamp(low, top))
    u, v = log_u.exp(), (log_u - l).exp()  # the clipped w; v = u e^-l is finite where e^-l is not; unclipped, it is q
    # -u Ahat
    return -{"fkl": u * a + beta * v, "rkl": u * a_hat, "ufkl": u * a - beta * (u - v), "urkl": u * a_hat}[kl]


def reinforce_dual_clip_loss(log_probs, old_log_probs, advantages, beta, kl="urkl", eps_low=0.2, eps_high=0.28, c=3.0,
                             ref_log_probs=None):
    r"""RPG-Style Clip, REINFORCE style (Sec. 4.1, Alg. 2): -stopgrad(w Ahat) log pi_theta while alive, else a constant.

        psi >= 0:   alive while w < 1 + eps_high           psi = -Ahat log pi_theta has the sign of Ahat
        psi <  0:   alive while 1 - eps_low < w < c

    Gradient and Ahat are those of dual_clip_loss. The value means nothing. ValueError for another kl and for c <= 1.
    w = 1.1, pi_theta = 0.5, A = 1, beta = 0: -1.1 log 0.5 = 0.762, weight 1.1. w = 2: weight 0.
    """
    ref = old_log_probs if ref_log_probs is None else ref_log_probs
    if not log_probs.shape == old_log_probs.shape == ref.shape or advantages.shape not in (ref.shape, ref.shape[:1]):
        raise ValueError("log_probs, old_log_probs, ref_log_probs must share a shape, advantages too or be [N]")
    old, ref, a = (x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (old_log_probs, ref, advantages))
    a = a if a.shape == old.shape else a[:, None]  # [N, T], [N, 1] or [N]
    if kl not in ("fkl", "rkl", "ufkl", "urkl"):
        raise ValueError(f"unknown kl {kl!r}: use fkl, rkl, ufkl or urkl")
    if c <= 1:
        raise ValueError(f"c must be larger than 1, got {c}")

    kl = kl if beta else "urkl"  # without beta all four are the same, and 0 times an infinite e^-l would be nan
    # Beyond both upper clips (and e^x > x) no event is alive: stopping there keeps its constant finite.
    log_w, l = (log_probs - old).detach().clamp(max=max(c, 1 + eps_high)), (log_probs - ref).detach()
    w, q = log_w.exp(), (log_w - l).exp()  # pi_theta / pi_old, pi_ref / pi_old
    a_hat = {"fkl": a + beta * (-l).exp(), "rkl": a - beta * (l + 1), "ufkl": a - beta * (1 - (-l).exp()),
             "urkl": a - beta * l}[kl]  # weight / w
    # w Ahat
    weight = {"fkl": w * a + beta * q, "rkl": w * a_hat, "ufkl": w * a - beta * (w - q), "urkl": w * a_hat}[kl]
    alive = torch.where(a_hat >= 0, w < 1 + eps_high, (w > 1 - eps_low) & (w < c))
    return -weight * torch.where(alive, log_probs, log_probs.detach())


def main():
    from enumeration import (gradient, objective, random_policy, random_rewards, relative_error, token_log_probs,
                             token_objective)

    kls, wide = ("fkl", "rkl", "ufkl", "urkl"), dict(eps_low=1.0, eps_high=1e9, c=1e9)  # wide: nothing is clipped
    old_logits, far, ref_logits, rewards = random_policy(1), random_policy(0), random_policy(2), random_rewards(3)
    free = [0.3 * random_policy(seed).flatten()[:15] - 2.5 for seed in (4, 5, 6)]

    def responses(x):
        return token_log_probs(x).sum(dim=1)  # [15]

    # What is certified, as (parameters -> events, J(parameters, beta, kl, reference))
    as_responses = responses, lambda x, beta, kl, ref: objective(responses(x), rewards, beta, kl, responses(ref))
    as_free = lambda x: x, lambda x, beta, kl, ref: objective(x, rewards, beta, kl, ref)
    as_tokens = token_log_probs, lambda x, beta, kl, ref: token_objective(x, old_logits, rewards, beta, kl, ref)

    def worst(kl, loss, theta, sampler, reference, log_probs, exact, baselines=(0.0, 0.6), betas=(0.0, 0.3, 2.0)):
        old, ref = log_probs(sampler), None if reference is None else log_probs(reference)
        p_old = old.reshape(15, -1).sum(dim=1).exp()  # [15]

        def error(beta, baseline):  # padding is constant: no mask needed here
            got = gradient(lambda x: (p_old * loss(log_probs(x), old, rewards - baseline, beta, ref_log_probs=ref)
                                      .reshape(15, -1).sum(dim=1)).sum(), theta)
            wanted = -gradient(lambda x: exact(x, beta, kl, sampler if reference is None else reference), theta)
            return relative_error(got, wanted)

        return max(error(beta, baseline) for beta in betas for baseline in baselines)

    print("Worst relative error of the expected gradient over beta in {0, 0.3, 2}, with and without a baseline.\n"
          "Responses: the whole response is the event, against J. Free: the 15 probabilities are no distribution, so\n"
          "that the mass terms count (no baseline). Tokens: against enumeration.token_objective.\n")
    print(f"{'':30s}|{'responses, theta = old':23s}|{'theta far from old':^20s}|{'free':^20s}| tokens, theta far")
    print(f"{'loss':30s}|{'ref = old':>11s}{'other':>11s} " + f"|{'ref = old':>10s}{'other':>10s}" * 3)
    for kl in kls:
        losses = {name: globals()[name] for name in (f"{kl}_loss", f"reinforce_{kl}_loss")}
        for name in ("dual_clip_loss", "reinforce_dual_clip_loss"):
            losses[f"{name}, {kl}"] = lambda *args, clip=globals()[name], **kw: clip(*args, kl=kl, **wide, **kw)
        for name, loss in losses.items():
            cells = [worst(kl, loss, theta, old_logits, ref, *as_responses)
                     for theta in (old_logits, far) for ref in (None, ref_logits)]
            cells += [worst(kl, loss, free[0], free[1], ref, *as_free, baselines=(0.0,)) for ref in (None, free[2])]
            cells += [worst(kl, loss, far, old_logits, ref, *as_tokens) for ref in (None, ref_logits)]
            print(f"{name:30s}|{cells[0]:11.0e}{cells[1]:11.0e} "
                  + "".join(f"|{a:10.0e}{b:10.0e}" for a, b in zip(cells[2::2], cells[3::2])))

    print("\nTokens as events, against J of whole responses: the relative bias of token ratios and of a KL per token,\n"
          "as theta leaves old: logits = old + step * direction. beta = 0.3.\n")
    steps, old = (0.0, 0.01, 0.1, 0.5, 1.0), responses(old_logits)
    moved = [old_logits + step * (far - old_logits) for step in steps]
    print(f"{'step':24s}" + "".join(f"{step:12g}" for step in steps))
    print(f"{'KL(pi_old || pi), nats':24s}" + "".join(f"{old.exp() @ (old - responses(x)):12.1e}" for x in moved))
    for label, ref in (("ref = old", None), ("other ref", ref_logits)):
        for kl in kls:
            biases = [worst(kl, globals()[f"{kl}_loss"], x, old_logits, ref, token_log_probs, as_responses[1], (0.0,),
                            (0.3,)) for x in moved]
            print(f"{f'{kl}_loss, {label}':24s}" + "".join(f"{bias:12.0e}" for bias in biases))

    print("\nAlgorithm 1 as printed, its gradient flowing through Ahat too, against dual_clip_loss; responses, theta\n"
          "far, ref = old, beta = 0.3. Event: largest error of one event's weight. Expected: relative error, summed.\n")

    def as_printed(log_probs, old_log_probs, advantages, beta, kl, eps_low, eps_high, c):
        l = log_probs - old_log_probs
        a_hat = advantages + beta * dict(fkl=(-l).exp(), rkl=-l - 1, ufkl=(-l).exp() - 1, urkl=-l)[kl]
        clipped = torch.maximum(-l.exp() * a_hat, -l.exp().clamp(1 - eps_low, 1 + eps_high) * a_hat)
        return torch.where(a_hat >= 0, clipped, torch.minimum(clipped, -c * a_hat))

    print(f"{'':6s}|{'nothing clipped':^24s}|{'eps 0.2 and 0.28, c = 3':^24s}\n"
          f"{'kl':6s}" + f"|{'event':>12s}{'expected':>12s}" * 2)
    for kl in kls:
        line = f"{kl:6s}"
        for clip in (wide, dict(eps_low=0.2, eps_high=0.28, c=3.0)):
            arguments = (old, rewards - 0.6, 0.3, kl, *clip.values())
            events, sums = ([gradient(lambda x: (p * loss(log_probs(x), *arguments)).sum(), theta)
                             for loss in (as_printed, dual_clip_loss)]
                            for p, log_probs, theta in ((1, lambda x: x, responses(far)), (old.exp(), responses, far)))
            line += f"|{(events[0] - events[1]).abs().max().item():12.0e}{relative_error(*sums):12.0e}"
        print(line)


if __name__ == "__main__":
    main()
