r"""The PMD family: losses that are called PMD, OPMD, DRO or "Kimi's loss" and are not the same loss.

All start from the regression of pmd_mean.py: fit the log-ratio to advantage / tau. They differ in four things, and each
of them changes what tau means: a token or the whole response as the event, tau or tau/2 before the square, a sum or a
mean, and whether the advantage carries the importance weight pi_theta/pi_old.

    s = sum_t l_t    l_t = log(pi_theta/pi_old) of token t    A = r - mean reward of the group    |y| = tokens of y

    name                           loss, to be minimised                               source
    k1.5, K2: pmd_mean.pmd_loss    (tau/2) (A/tau - s)^2                               arXiv 2501.12599, 2507.20534
    openkimi_loss                  c (tau/2) (A/tau - s)^2 / |y|                       OpenKimi `opmd`
    partition_weights              that c: e^{r/tau} / mean_j e^{r_j/tau}, else 1      OpenKimi, weighted PMD
    pmd_k25_loss                   -Clip(e^{l_t}, alpha, beta) A + tau l_t^2           Kimi K2.5, 2602.02276 eq. 1
    pmd_k25_masked_loss            the same, no gradient where l_t is outside them     the text below that equation
    dro_loss                       -A log pi_t + (beta/2) l_t^2                        tinker and verl `dro`; prime-rl
                                                                                       `kimi_k15` (pull request 3381)
    pmd_residual_loss              -stopgrad(A/tau - s) log pi(y)                      prime-rl `pmd_mean` (3381 too)
    opmd_loss                      -A log pi_t / (1 + tau)                             Trinity-RFT `opmd`
    a2po_loss                      (beta log(pi/pi_ref) - (r - V*))^2                  A*-PO, 2505.20686; TRL 1.16 A2PO
    target_policy_loss             -q log p over the group, q ~ p_old e^{A/tau}        2604.06159, abstract

What the table of `python pmd_variants.py` shows, all of it [derived] by enumeration:
- In the first step after sampling every regression onto pi_old follows the policy gradient, up to a constant or a
  weight on responses. With one optimizer step per rollout these losses hardly differ. target_policy_loss does not
  follow the policy gradient: it moves p towards q.
- Off policy only K2.5 has an importance weight, per token. The others average over pi_old as it was. The weight is why
  K2.5 needs its clip. At log-ratio l the advantage pushes with e^l A and the square pulls back with 2 tau l. The pull,
  measured by the push, grows up to l = 1 and shrinks beyond.
- A*-PO samples from pi_theta itself and regresses onto a fixed reference: on policy it follows E[r] - beta KL exactly.
- Trinity's opmd has no log-ratio. Its tau is a learning rate, and its loss has no minimum.
- A square per token has another optimum than the square of the sum. It is one regression for each prefix. There the
  advantage is Q_old(prefix, token) minus the mean reward of the PROMPT, and its mean over tokens need not be 0. Where
  it is below 0, the multiplier lam of the next lines may be negative. In pmd_mean.py it never is.

Optimum, for free probabilities and exact expectations: every regression is stationary under sum pi = 1 where
    s + (lam / c) e^s = A/tau     with E_old[e^s] = 1     (pmd_mean.py: c = 1; openkimi_loss: its own c / |y|)
K2.5 inside its bounds, per prefix:  l e^-l = (Q_old - mu) / (2 tau)     with E_old[e^l] = 1.     [derived]

What tau means for rewards of +-1. They are 2 r - 1 for rewards r of 0 and 1, so advantages double, and the same step
needs twice the tau: the loss of pmd_loss, openkimi_loss, the two of K2.5 and dro_loss is then 2 times what it was,
a2po_loss 4 times, pmd_residual_loss and target_policy_loss the same, with the same optimum. With tau left as it was the
regularisation is half as strong. opmd_loss is the exception: it divides by 1 + tau, so twice the tau is not half of it.
[derived]

Departures: advantages and weights come as arguments. Prime-rl averages token advantages over a response; here a
response has one. Of 2604.06159 only the abstract was read: p as the softmax over a group's responses follows from the
gradient p - q that it states, u = A/tau is our choice. K2.5's bounds have no published value in our source; ours are
DAPO's 0.2 and 0.28.
"""
import torch


def openkimi_loss(log_probs, old_log_probs, advantages, response_mask, tau, weights=None):
    r"""OpenKimi's `opmd`, per response: c (tau/2) (A/tau - s)^2 / |y|, s = sum_t l_t (openkimi/pmd/core_algos.py).

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, response_mask [N, T] non-zero
    where a token stands, weights c [N] or None for 1 (see partition_weights) -> loss [N], whose mean over responses is
    the objective; float32, or float64 where log_probs is. A = 0.5, tau = 0.1, s = 0.2, two tokens: 1.152 / 2 = 0.576.
    Without 1/|y| and c it is pmd_mean.pmd_loss, for which a long wrong response counts as much as a short one.
    What stands at masked positions reaches neither value nor gradient. ValueError for tau <= 0 and other shapes.
    """
    if response_mask.dim() != 2 or not log_probs.shape == old_log_probs.shape == response_mask.shape or \
            advantages.shape != log_probs.shape[:1] or (weights is not None and weights.shape != advantages.shape):
        raise ValueError("log_probs, old_log_probs, response_mask must be [N, T], advantages and weights [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, response_mask, advantages)]}"
                         f" and {None if weights is None else tuple(weights.shape)}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    mask = response_mask.bool()  # [N, T]
    s = torch.where(mask, log_probs.to(dtype) - old_log_probs.detach().to(dtype), 0.0).sum(dim=1)  # [N]
    length = mask.sum(dim=1).clamp(min=1)  # [N], |y|
    c = 1.0 if weights is None else weights.detach().to(dtype)  # [N]
    return c * (advantages.detach().to(dtype) - tau * s).square() / (2 * tau) / length  # [N]


def partition_weights(rewards, group_size, tau):
    r"""OpenKimi's weighted PMD: c_i = e^{(r_i - max)/tau} / mean_j e^{(r_j - max)/tau} over the group; off by default.

    rewards [N], group after group, and tau in units of reward -> weights [N], mean 1 in each group; float32, or float64
    for float64 rewards. [1, 0, 0, 0] at tau = 1 gives [1.901, 0.700, 0.700, 0.700], at tau = 0.01 [4, 0, 0, 0].
    In the limit of a large group c = pi*/pi_old, pi* the solution of the mirror-descent step: responses of pi_old count
    as responses of pi*. [derived] At small tau only the winners of a group are left.
    Equal rewards give exact ones. ValueError for tau <= 0 and groups that do not divide.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError("rewards must be [N] with N a multiple of group_size, got "
                         f"{tuple(rewards.shape)} and {group_size}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    e = ((r - r.amax(dim=1, keepdim=True)) / tau).exp()  # [P, G], at most 1
    return (e / e.mean(dim=1, keepdim=True)).reshape(-1)  # [N]


def pmd_k25_loss(log_probs, old_log_probs, advantages, tau, eps_low=0.2, eps_high=0.28):
    r"""Kimi K2.5 as its formula stands (arXiv 2602.02276 eq. 1), per token; the loss is the mean over a batch's tokens.

        -Clip(w, 1 - eps_low, 1 + eps_high) A + tau l^2,     w = pi_theta/pi_old, l = log w

    Minus the gradient: (w A [w inside the bounds] - 2 tau l) grad log pi. Both signs of A are clipped on both sides: it
    is not PPO's min. Outside the bounds the square still pulls the token back. One before the square, where DRO and
    k1.5 have one half: the same tau is twice as strong. aggregation.py's "token-mean" is the source's average.

    log_probs, old_log_probs [N, T] per token or [N] per response, in nats; advantages [N] or that shape, and tau, in
    units of reward -> loss like log_probs; float32, or float64 for float64 log_probs.
    A = 1, tau = 0.1: w = 1.2 gives -1.2 + 0.1 (log 1.2)^2 = -1.197; w = 2 gives -1.28 + 0.048 = -1.232.
    The source's alpha is 1 - eps_low, its beta 1 + eps_high; the defaults are DAPO's, our choice.
    Gradient flows into log_probs only. ValueError for other shapes and for bounds that do not contain w = 1.
    """
    if log_probs.shape != old_log_probs.shape or advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("log_probs, old_log_probs must share a shape, advantages too or be [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, advantages)]}")
    if not (0 <= eps_low <= 1 and eps_high >= 0):
        raise ValueError(f"eps_low must be between 0 and 1 and eps_high at least 0, got {eps_low} and {eps_high}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_probs.dim() - advantages.dim()))  # [N, 1]
    l = log_probs.to(dtype) - old_log_probs.detach().to(dtype)  # [N, T] or [N]
    # Clip l, not e^l: where e^l overflows, its clipped value is right, but the gradient would be 0 times inf.
    low, high = torch.tensor([1 - eps_low, 1 + eps_high], dtype=dtype, device=l.device).log()
    return -l.clamp(low, high).exp() * a + tau * l.square()  # [N, T] or [N]


def pmd_k25_masked_loss(log_probs, old_log_probs, advantages, tau, eps_low=0.2, eps_high=0.28):
    r"""Kimi K2.5 as its text has it (arXiv 2602.02276, policy optimization), per token; mean over the batch's tokens.

        -e^l A + tau l^2  at  l = log(pi_theta/pi_old) clipped to [-eps_low, eps_high]

    Inside, the gradient of pmd_k25_loss. Outside, none at all, whatever the sign of A: nor the pull of the square, so a
    token that has left stays where it is until other tokens move it. That the square is masked too is how we read "the
    gradient of a token is 0".
    The bounds are on the log-ratio: 0.28 lets w reach e^0.28 = 1.323, where pmd_k25_loss stops at 1.28. They must
    contain 0, or no token moves on policy.

    Arguments, shapes and errors as pmd_k25_loss. A = 1, tau = 0.1: w = 1.2 gives -1.197; w = 2 gives
    -e^0.28 + 0.1 * 0.28^2 = -1.315, a constant. The source's alpha is -eps_low, its beta eps_high; values our choice.
    """
    if log_probs.shape != old_log_probs.shape or advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("log_probs, old_log_probs must share a shape, advantages too or be [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, advantages)]}")
    if not (eps_low >= 0 and eps_high >= 0):
        raise ValueError(f"eps_low and eps_high must be at least 0, got {eps_low} and {eps_high}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_probs.dim() - advantages.dim()))  # [N, 1]
    l = (log_probs.to(dtype) - old_log_probs.detach().to(dtype)).clamp(-eps_low, eps_high)  # [N, T] or [N]
    return -l.exp() * a + tau * l.square()  # [N, T] or [N]


def dro_loss(log_probs, old_log_probs, advantages, beta):
    r"""Token-level DRO of tinker and verl, and prime-rl's `kimi_k15`: -A log pi + (beta/2) l^2, l = log(pi/pi_old).

    Minus the gradient: (A - beta l) grad log pi, token by token. pmd_mean.pmd_loss has (A - tau s), s summed over the
    response: for a response of one token they are the same. In a longer one whose tokens move the same way the sum of
    squares is smaller than the square of the sum, so it holds the policy back less.

    log_probs, old_log_probs [N, T] per token or [N] per response, in nats; advantages [N] or that shape, and beta
    (prime-rl: tau), in units of reward -> loss like log_probs; float32, or float64 for float64 log_probs. Tinker's
    example has beta 0.05 and a sum over tokens. A = 0.5, pi = 0.2, pi_old = 0.1, beta = 0.1: 0.805 + 0.024 = 0.829.
    Gradient flows into log_probs only. ValueError for other shapes.
    """
    if log_probs.shape != old_log_probs.shape or advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("log_probs, old_log_probs must share a shape, advantages too or be [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, advantages)]}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_p = log_probs.to(dtype)  # [N, T] or [N]
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_p.dim() - advantages.dim()))  # [N, 1]
    return -a * log_p + beta / 2 * (log_p - old_log_probs.detach().to(dtype)).square()  # [N, T] or [N]


def pmd_residual_loss(log_probs, old_log_probs, advantages, response_mask, tau):
    r"""Prime-rl's `pmd_mean`, per response: -stopgrad(A/tau - s) log pi(y) (its pull request 3381).

    The gradient is pmd_mean.pmd_loss's divided by tau: tau = 0.01 makes the step 100 times as large, unless the
    optimizer or a clipped gradient norm takes that out. The value means nothing.

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, response_mask [N, T] non-zero
    where a token stands -> loss [N]; float32, or float64 where log_probs is. What stands at masked positions reaches
    neither value nor gradient. A = 0.5, tau = 0.1, s = 0.2, log pi(y) = -1: 4.8. ValueError for tau <= 0, other shapes.
    """
    if response_mask.dim() != 2 or not log_probs.shape == old_log_probs.shape == response_mask.shape or \
            advantages.shape != log_probs.shape[:1]:
        raise ValueError("log_probs, old_log_probs, response_mask must be [N, T] and advantages [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, response_mask, advantages)]}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    mask = response_mask.bool()  # [N, T]
    s = torch.where(mask, log_probs.to(dtype) - old_log_probs.to(dtype), 0.0).sum(dim=1)  # [N]
    log_p = torch.where(mask, log_probs.to(dtype), 0.0).sum(dim=1)  # [N], log pi(y)
    return -(advantages.to(dtype) / tau - s).detach() * log_p  # [N]


def opmd_loss(log_probs, advantages, tau):
    r"""Trinity-RFT's `opmd`, per token: -A log pi / (1 + tau), baseline in A the mean or the log-mean-exp of rewards.

    REINFORCE with its learning rate divided by 1 + tau. Nothing ties pi to pi_old, and off policy nothing bounds it:
    a response with A < 0 lowers the loss for ever.

    log_probs [N, T] per token or [N] per response, in nats; advantages [N] or that shape -> loss like log_probs;
    float32, or float64 for float64 log_probs. A = 0.5, pi = 0.2, tau = 1: 0.805 / 2 = 0.402. ValueError for tau <= -1
    and other shapes.
    """
    if advantages.shape not in (log_probs.shape, log_probs.shape[:1]):
        raise ValueError("advantages must be [N] or have the shape of log_probs, got "
                         f"{tuple(advantages.shape)} and {tuple(log_probs.shape)}")
    if not tau > -1:
        raise ValueError(f"tau must be larger than -1, got {tau}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    a = advantages.detach().to(dtype).reshape(advantages.shape + (1,) * (log_probs.dim() - advantages.dim()))  # [N, 1]
    return -a * log_probs.to(dtype) / (1 + tau)  # [N, T] or [N]


def a2po_values(ref_rewards, group_size, beta):
    r"""A*-PO's V* of each prompt: beta log mean_i e^{r_i/beta} over responses of pi_ref (2505.20686; TRL: 8 of them).

    ref_rewards [P * group_size], prompt after prompt, and beta in units of reward -> [P]; float32, or float64 for
    float64 rewards. Estimated once, before training. [1, 0, 0, 0] at beta = 0.5: 0.5 log((e^2 + 3)/4) = 0.477.
    TRL's beta here is 0.5 (`beta1`), in the loss 1e-3 (`beta2`). ValueError for beta <= 0, groups that do not divide.
    """
    if ref_rewards.dim() != 1 or group_size < 1 or len(ref_rewards) % group_size:
        raise ValueError("ref_rewards must be [P * group_size], got "
                         f"{tuple(ref_rewards.shape)} and group_size {group_size}")
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta must be positive and finite, got {beta}")
    r = ref_rewards.to(torch.promote_types(ref_rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    top = r.amax(dim=1)  # [P]
    return top + beta * ((r - top[:, None]) / beta).exp().mean(dim=1).log()  # [P]


def a2po_loss(log_probs, ref_log_probs, rewards, values, response_mask, beta):
    r"""A*-PO's regression (2505.20686; TRL 1.16 A2PO), per response: (beta log(pi/pi_ref) - (r - V*))^2.

    The responses are to be sampled from pi_theta itself. Then minus the gradient is 2 beta times that of
    E_pi[r] - beta KL(pi || pi_ref), whatever V* is: a constant has no gradient on policy. [derived] Responses of
    another policy make it pmd_mean.pmd_loss times 2 beta, with pi_ref for pi_old and r - V* for A, and V* matters.

    log_probs, ref_log_probs [N, T] in nats, rewards and values [N] (V* of each response's prompt) and beta in units of
    reward, response_mask [N, T] non-zero where a token stands -> loss [N]; float32, or float64 where log_probs is.
    r = 1, V* = 0.5, beta = 0.1, log-ratio 0.2: (0.02 - 0.5)^2 = 0.230. What stands at masked positions reaches neither
    value nor gradient. ValueError for other shapes.
    """
    if response_mask.dim() != 2 or not log_probs.shape == ref_log_probs.shape == response_mask.shape or \
            not rewards.shape == values.shape == log_probs.shape[:1]:
        raise ValueError("log_probs, ref_log_probs, response_mask must be [N, T], rewards and values [N]; got "
                         f"{[tuple(x.shape) for x in (log_probs, ref_log_probs, response_mask, rewards, values)]}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    log_ratio = log_probs.to(dtype) - ref_log_probs.detach().to(dtype)  # [N, T]
    s = torch.where(response_mask.bool(), log_ratio, 0.0).sum(dim=1)  # [N]
    return (beta * s - (rewards - values).detach().to(dtype)).square()  # [N]


def target_policy_loss(log_probs, old_log_probs, advantages, response_mask, group_size, tau):
    r"""Target policy optimization, per response: -q_i log p_i, summed over the group a cross-entropy (2604.06159).

        p_i = pi(y_i) / sum_j pi(y_j) over the group,   q_i ~ p_old_i e^{A_i/tau},   gradient at log pi(y_i): p_i - q_i

    With all responses in the group q is pi* = pi_old e^{r/tau} / Z, and the loss is KL(pi* || pi) plus a constant: what
    pmd_mean.py fits by squares is fitted by cross-entropy. A sampled group says nothing of the mass outside it.

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, group after group,
    response_mask [N, T] non-zero where a token stands -> loss [N]; float32, or float64 where log_probs is.
    Two responses, equally likely under both policies, A/tau = (log 3, 0): q = (3/4, 1/4), loss (0.520, 0.173).
    What stands at masked positions reaches neither value nor gradient.
    ValueError for tau <= 0, other shapes and groups that do not divide.
    """
    if response_mask.dim() != 2 or not log_probs.shape == old_log_probs.shape == response_mask.shape or \
            advantages.shape != log_probs.shape[:1] or group_size < 1 or len(log_probs) % group_size:
        raise ValueError("log_probs, old_log_probs, response_mask must be [N, T], advantages [N], N a multiple of "
                         f"group_size = {group_size}; got "
                         f"{[tuple(x.shape) for x in (log_probs, old_log_probs, response_mask, advantages)]}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    mask = response_mask.bool()  # [N, T]
    log_p, log_old = (torch.where(mask, x.to(dtype), 0.0).sum(dim=1).reshape(-1, group_size)
                      for x in (log_probs, old_log_probs.detach()))  # [P, G]
    u = advantages.detach().to(dtype).reshape(-1, group_size) / tau  # [P, G]
    return -((log_old + u).softmax(dim=1) * log_p.log_softmax(dim=1)).reshape(-1)  # [N]


def regression_policy(old_probs, targets, weights=1.0):
    r"""Minimiser over policies of E_old[c (u - s)^2], s = log(pi/pi_old): s + (lam/c) e^s = u with E_old[e^s] = 1.

    old_probs [K], targets u [K], weights c [K], float64 -> (probs [K], lam). u need not average to 0, so lam may be
    negative, down to where the token of the largest u would have s + (lam/c) e^s at its maximum. For moderate u.
    """
    def log_ratio(lam):
        s = targets.clone()  # [K]
        for _ in range(12):  # Newton; the curve is convex for lam > 0, concave below: from u it never oversteps
            s = s - (s + lam / weights * s.exp() - targets) / (1 + lam / weights * s.exp())
        return s

    low, high = (-weights * (-1 - targets).exp()).max().item(), 1.0
    while (old_probs * log_ratio(high).exp()).sum() > 1:
        high *= 2
    for _ in range(60):  # the mass falls as lam grows
        lam = (low + high) / 2
        low, high = (lam, high) if (old_probs * log_ratio(lam).exp()).sum() > 1 else (low, lam)
    return old_probs * log_ratio(lam).exp(), lam


def k25_policy(old_probs, values, tau):
    r"""Maximiser of E_pi[Q] - tau E_old[l^2], l = log(pi/pi_old): l e^-l = (Q - mu)/(2 tau) with E_old[e^l] = 1.

    K2.5 in one prefix, nothing clipped. old_probs, values Q [K], float64 -> probs [K]. ValueError where a token would
    have l above 1: there l e^-l falls again.
    """
    def log_ratio(mu):
        low, high = torch.full_like(values, -50.0), torch.ones_like(values)  # [K]
        for _ in range(60):
            l = (low + high) / 2
            below = l * (-l).exp() < (values - mu) / (2 * tau)  # [K]
            low, high = torch.where(below, l, low), torch.where(below, high, l)
        return l

    low, high = values.min().item() - 2 * tau, values.max().item() + 2 * tau
    for _ in range(60):  # the mass falls as mu grows
        mu = (low + high) / 2
        low, high = (mu, high) if (old_probs * log_ratio(mu).exp()).sum() > 1 else (low, mu)
    if log_ratio(mu).max() > 1 - 1e-9:
        raise ValueError(f"tau = {tau} is too small for these values: a token would have l above 1")
    return old_probs * log_ratio(mu).exp()


def by_prefix(old_logits, advantages, solve):
    r"""A policy from one problem per prefix: solve(pi_old(.|prefix) [3], E_old[A | prefix, token] [3]) -> probs [3]."""
    from enumeration import MASK, STATES, TOKENS, token_log_probs

    old = token_log_probs(old_logits).sum(dim=1).exp()  # [15]
    visits, totals = torch.zeros(2, 7, 3, dtype=old.dtype)  # [7, 3], probability of prefix and token; the same times A
    where = (STATES[MASK], TOKENS[MASK])
    visits.index_put_(where, old[:, None].expand(15, 3)[MASK], accumulate=True)
    totals.index_put_(where, (old * advantages)[:, None].expand(15, 3)[MASK], accumulate=True)
    probs = [solve(p, q) for p, q in zip(old_logits.softmax(dim=-1), totals / visits)]
    return token_log_probs(torch.stack(probs).log()).sum(dim=1).exp()  # [15]


def minimiser(loss, start):
    r"""Probabilities [15] of the policy that minimises loss(logits) [7, 3] -> scalar, by brute force from `start`."""
    from enumeration import token_log_probs

    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  history_size=30, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    for _ in range(2):  # a restart forgets a bad estimate of the curvature
        optimizer.step(closure)
    return token_log_probs(logits.detach()).sum(dim=1).exp()


def expected_losses(old, ref, rewards, tau, eps_low=0.2, eps_high=0.28):
    r"""{name: its loss over all 15 responses of pi_old, as a function of logits [7, 3]}, with the bounds of K2.5.

    A*-PO has its log-ratio to `ref`, the others to `old`. Losses per token are summed over a response; those of K2.5
    and Trinity are also divided by the mean number of tokens, since a mean over tokens is the average of both sources.
    """
    from enumeration import MASK, token_log_probs
    from pmd_mean import pmd_loss

    old_log_probs, ref_log_probs = token_log_probs(old), token_log_probs(ref)  # [15, 3]
    p = old_log_probs.sum(dim=1).exp()  # [15], probability of being sampled
    n = (p * MASK.sum(dim=1)).sum()
    eps = dict(eps_low=eps_low, eps_high=eps_high)
    a = rewards - (p * rewards).sum()  # [15]
    c = (rewards / tau - (p.log() + rewards / tau).logsumexp(dim=0)).exp()  # [15], partition weights of a large group
    v = tau * (ref_log_probs.sum(dim=1) + rewards / tau).logsumexp(dim=0).expand(15)  # [15], V* of a large group

    def average(losses):  # of tokens [15, 3] or responses [15]
        losses = losses if losses.dim() == 1 else (MASK * losses).sum(dim=1)
        return (p * losses).sum()

    log_p = token_log_probs
    return {
        "k1.5, K2": lambda x: average(pmd_loss(log_p(x), old_log_probs, a, MASK, tau)),
        "OpenKimi opmd": lambda x: average(openkimi_loss(log_p(x), old_log_probs, a, MASK, tau)),
        "OpenKimi weighted": lambda x: average(openkimi_loss(log_p(x), old_log_probs, a, MASK, tau, c)),
        "K2.5, formula": lambda x: average(pmd_k25_loss(log_p(x), old_log_probs, a, tau, **eps)) / n,
        "K2.5, text": lambda x: average(pmd_k25_masked_loss(log_p(x), old_log_probs, a, tau, **eps)) / n,
        "DRO, kimi_k15": lambda x: average(dro_loss(log_p(x), old_log_probs, a, tau)),
        "prime-rl pmd_mean": lambda x: average(pmd_residual_loss(log_p(x), old_log_probs, a, MASK, tau)),
        "Trinity opmd": lambda x: average(opmd_loss(log_p(x), a, tau)) / n,
        "A*-PO": lambda x: average(a2po_loss(log_p(x), ref_log_probs, rewards, v, MASK, tau)),
        "target policy": lambda x: target_policy_loss(log_p(x), old_log_probs, a, MASK, 15, tau).sum(),
    }


def recognise(got, logits, old, ref, rewards, tau):
    r"""Names what a step along minus `got`, a loss's gradient at `logits`, ascends: factor (gain - k cost).

    Gains   J   E_pi[r]       P   E_old[A log pi], J without the weight       K   J with the weight of each token alone
            J/y, P/y          with A/|y| for A            Jc, Pc   with c A/|y|, c the partition weight
            Pv                P with r - V* for A         F        -KL(pi* || pi), pi* = pi_old e^{r/tau} / Z
    Costs   S   (tau/2) E_old[s^2]          T   (tau/2) E_old[sum_t l_t^2]          S/y, Sc   weighted like P/y, Pc
            Sr  S with log(pi/ref) for s    KL  tau KL(pi || ref)
    Factors 1/tau, 1/(1 + tau), 2 tau, and 1/n with n the mean number of tokens. 'neither' where nothing fits.
    """
    from enumeration import MASK, divergence, gradient, token_log_probs, token_objective

    lengths, log_ref = MASK.sum(dim=1), token_log_probs(ref).sum(dim=1)  # [15]
    old_log_probs = token_log_probs(old)  # [15, 3]
    log_old = old_log_probs.sum(dim=1)  # [15]
    p = log_old.exp()  # [15]
    a = rewards - (p * rewards).sum()  # [15]
    n = (p * lengths).sum().item()
    star = (log_old + rewards / tau).log_softmax(dim=0)  # [15], log pi*
    c = (star - log_old).exp()  # [15]
    v = tau * (log_ref + rewards / tau).logsumexp(dim=0)

    def log_p(x):
        return token_log_probs(x).sum(dim=1)  # [15]

    gains = {
        "J": lambda x: (log_p(x).exp() * rewards).sum(),
        "K": lambda x: token_objective(x, old, rewards, 0.0, "rkl", old),
        "P": lambda x: (p * a * log_p(x)).sum(),
        "J/y": lambda x: (log_p(x).exp() * a / lengths).sum(),
        "P/y": lambda x: (p * a / lengths * log_p(x)).sum(),
        "Jc": lambda x: (log_p(x).exp() * c * a / lengths).sum(),
        "Pc": lambda x: (p * c * a / lengths * log_p(x)).sum(),
        "Pv": lambda x: (p * (rewards - v) * log_p(x)).sum(),
        "F": lambda x: -divergence("fkl", log_p(x), star),
    }
    costs = {
        "KL": lambda x: tau * divergence("rkl", log_p(x), log_ref),
        "S": lambda x: tau / 2 * (p * (log_p(x) - log_old).square()).sum(),
        "T": lambda x: tau / 2 * (p[:, None] * (token_log_probs(x) - old_log_probs).square()).sum(),
        "S/y": lambda x: tau / 2 * (p / lengths * (log_p(x) - log_old).square()).sum(),
        "Sc": lambda x: tau / 2 * (p * c / lengths * (log_p(x) - log_old).square()).sum(),
        "Sr": lambda x: tau / 2 * (p * (log_p(x) - log_ref).square()).sum(),
    }
    factors = {"{}": 1, "{} / n": 1 / n, "{} / tau": 1 / tau, "{} / (n + n tau)": 1 / (n + n * tau),
               "2 tau {}": 2 * tau}
    costs = {name: gradient(cost, logits) for name, cost in costs.items()}
    for gain_name, gain in gains.items():
        gain = gradient(gain, logits)
        for form, factor in factors.items():
            for k, cost_name in [(0, "S")] + [(k, name) for name in costs for k in (1, 2)]:
                if (got + factor * (gain - k * costs[cost_name])).norm() < 1e-9 * got.norm():
                    text = gain_name + ("", f" - {cost_name}", f" - 2{cost_name}")[k]
                    return form.format(f"({text})" if k and form != "{}" else text)
    return "neither"


def optima(old, ref, rewards, tau):
    r"""{name: (where it is, its probabilities [15])} for losses sampled from pi_old, K2.5 without clipping."""
    from enumeration import MASK, token_log_probs

    p, q = (token_log_probs(x).sum(dim=1).exp() for x in (old, ref))  # [15]
    a, lengths = rewards - (p * rewards).sum(), MASK.sum(dim=1).double()  # [15]
    star, star_ref = ((x.log() + rewards / tau).softmax(dim=0) for x in (p, q))  # [15]
    k25 = ("l e^-l = (Q - mu)/2tau", by_prefix(old, a, lambda p, q: k25_policy(p, q, tau)))
    pmd = ("s + lam e^s = A/tau", regression_policy(p, a / tau)[0])
    return {
        "k1.5, K2": pmd,
        "OpenKimi opmd": ("s + lam |y| e^s = A/tau", regression_policy(p, a / tau, 1 / lengths)[0]),
        "OpenKimi weighted": ("s + lam |y|/c e^s = A/tau", regression_policy(p, a / tau, star / p / lengths)[0]),
        "K2.5, formula": k25,
        "K2.5, text": k25,
        "DRO, kimi_k15": ("l + lam e^l = Q/tau", by_prefix(old, a, lambda p, q: regression_policy(p, q / tau)[0])),
        "prime-rl pmd_mean": pmd,
        "Trinity opmd": ("none", None),
        "A*-PO": ("pi_ref e^{r/tau} / Z", star_ref),
        "target policy": ("pi_old e^{r/tau} / Z", star),
    }


def main():
    from baselines import grpo_loss
    from enumeration import gradient, random_policy, random_rewards, token_log_probs

    tau, old, ref, rewards = 1.5, random_policy(1), random_policy(2), random_rewards(3)
    near = old + 0.05 * random_policy(0)  # off policy, and every token's ratio inside K2.5's bounds
    token, whole = ("token", "response")
    facts = {"k1.5, K2": (whole, "tau/2"), "OpenKimi opmd": (whole, "tau/2"), "OpenKimi weighted": (whole, "tau/2"),
             "K2.5, formula": (token, "tau"), "K2.5, text": (token, "tau"), "DRO, kimi_k15": (token, "tau/2"),
             "prime-rl pmd_mean": (whole, "tau/2"), "Trinity opmd": (token, "-"), "A*-PO": (whole, "tau^2"),
             "target policy": (whole, "-")}
    print("What a step ascends, tau = 1.5. square: the factor before it. A*-PO: log-ratio to another policy, ref.\n"
          "J = E_pi[r], P = E_old[A log pi] (J without the importance weight), K = J with a weight per token,\n"
          "S = (tau/2) E_old[s^2], T = (tau/2) E_old[sum_t l_t^2], /y and c: responses weighted by 1/|y| and c/|y|,\n"
          "Pv = P with r - V* for A, Sr = S to ref, KL = tau KL(pi || ref), F = -KL(pi* || pi), n = mean tokens.\n")
    print(f"{'loss':19s}{'event':10s}{'square':8s}{'on policy':18s}{'off policy':18s}")
    on, off = expected_losses(near, ref, rewards, tau), expected_losses(old, ref, rewards, tau)
    for name, (event, square) in facts.items():
        cells = [recognise(gradient(losses[name], near), near, sampler, ref, rewards, tau)
                 for losses, sampler in ((on, near), (off, old))]
        print(f"{name:19s}{event:10s}{square:8s}{cells[0]:18s}{cells[1]}")

    print("\nThe optimum, tau = 1.5, ref = old, K2.5 without clipping. KL = KL(pi_old || pi) in nats. error: largest\n"
          "difference of a probability between the closed form and brute-force minimisation.\n")
    print(f"{'loss':19s}{'optimum':28s}{'E[r]':>8s}{'KL':>8s}{'error':>9s}")
    wide, p = expected_losses(old, old, rewards, tau, eps_low=1.0, eps_high=9.0), token_log_probs(old).sum(dim=1).exp()
    print(f"{'(no step)':47s}{(p * rewards).sum():8.3f}{0:8.3f}")
    for name, (where, best) in optima(old, old, rewards, tau).items():
        if best is None:
            print(f"{name:19s}{where}")
        elif name == "prime-rl pmd_mean":  # its value means nothing: minimising it would show nothing
            print(f"{name:19s}{where:28s}{(best * rewards).sum():8.3f}{(p * (p / best).log()).sum():8.3f}")
        else:
            error = (minimiser(wide[name], old) - best).abs().max()
            print(f"{name:19s}{where:28s}{(best * rewards).sum():8.3f}{(p * (p / best).log()).sum():8.3f}{error:9.0e}")

    print("\nTrinity's opmd along its own gradient, by length of the step in logits:")
    down = -gradient(off["Trinity opmd"], old)
    print("  ".join(f"{k:g}: {off['Trinity opmd'](old + k / down.norm() * down):.3f}" for k in (0, 10, 100, 1000)))

    print("\nWeight of grad log pi of one token, by its ratio; tau = beta = 0.1, bounds 0.2 and 0.28.\n")
    losses = {
        "PPO clip": lambda x, old, a: grpo_loss(x, old, a, eps_low=0.2, eps_high=0.28),
        "K2.5, formula": lambda x, old, a: pmd_k25_loss(x, old, a, 0.1),
        "K2.5, text": lambda x, old, a: pmd_k25_masked_loss(x, old, a, 0.1),
        "DRO": lambda x, old, a: dro_loss(x, old, a, 0.1),
    }
    ratios = torch.tensor([0.5, 0.81, 0.9, 1.0, 1.25, 1.3, 2.0], dtype=torch.float64)
    print(f"{'':4s}{'':15s}" + "".join(f"{ratio:9.2f}" for ratio in ratios.tolist()))
    for a in (1.0, -1.0):
        for name, loss in losses.items():
            weight = -gradient(lambda x: loss(x, 0 * ratios, torch.full_like(ratios, a)).sum(), ratios.log())
            print(f"A={a:+.0f}  {name:14s}" + "".join(f"{w + 0.0:9.3f}" for w in weight.tolist()))


if __name__ == "__main__":
    main()
