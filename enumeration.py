r"""Enumeration: how to know that a loss has the gradient that its paper claims.

A policy-gradient loss is right when its gradient, averaged over the sampler's responses, is minus the gradient of the
objective. Samples cannot show this: their noise falls only as 1/sqrt(n), and the effect of a forgotten weight can be
smaller than the noise. So take a policy small enough to list every response. Both sides become finite sums, exact to
rounding:

    what is claimed     J(theta) from all the probabilities, differentiated by autograd: no sampler, no ratio
    what is computed    sum_y pi_old(y) loss(y), differentiated by autograd
    certificate         | grad loss + grad J | / | grad J |, about 1e-16 in float64 where the loss is right

The policy here is autoregressive, like a language model. It has three tokens, and token 0 ends the response. A response
has at most three tokens. Each prefix has its own free distribution. That makes 7 prefixes and 15 responses:

    0    1 0    2 0    1 1 *    1 2 *    2 1 *    2 2 *        (* is each of 0, 1, 2)

Nothing here depends on a loss; rpg_losses.py, kl_estimators.py, baselines.py and the tests use it.

`python enumeration.py` lists the responses, then tests a right and a wrong loss by samples and by enumeration.
"""
import torch

PREFIXES = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]
RESPONSES = [(0,), (1, 0), (2, 0)] + [prefix + (token,) for prefix in PREFIXES[3:] for token in (0, 1, 2)]
TOKENS = torch.tensor([response + (0,) * (3 - len(response)) for response in RESPONSES])  # [15, 3]
MASK = torch.tensor([[t < len(response) for t in range(3)] for response in RESPONSES])  # [15, 3]
STATES = torch.tensor([[PREFIXES.index(response[:t]) if t < len(response) else 0 for t in range(3)]
                       for response in RESPONSES])  # [15, 3], the prefix in which each token was chosen


def random_policy(seed, scale=1.0):
    r"""Logits [7, 3], float64: a next-token distribution for each prefix, log_softmax(logits, dim=-1)."""
    return scale * torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_rewards(seed):
    r"""Rewards [15] between -0.5 and 1.5, float64."""
    return 2 * torch.rand(15, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5


def token_log_probs(logits):
    r"""log pi(y_t | y_<t) of every response: [15, 3], 0 after its end. Its sum over tokens is log pi(y)."""
    return torch.where(MASK, logits.log_softmax(dim=-1)[STATES, TOKENS], 0.0)


def divergence(kl, log_p, log_ref):
    r"""FKL, RKL, UFKL or URKL between exp(log_p) and exp(log_ref), by definition, summed over the last dimension.

    fkl = KL(ref || p), rkl = KL(p || ref); the u adds the mass terms of RPG Def. 3.1 and 3.4:
    UKL(p || q) = sum p log(p/q) + sum (q - p). Masses need not be 1.
    """
    p, ref = log_p.exp(), log_ref.exp()
    if kl == "fkl":
        return (ref * (log_ref - log_p)).sum(dim=-1)
    if kl == "ufkl":
        return (ref * (log_ref - log_p) + p - ref).sum(dim=-1)
    if kl == "rkl":
        return (p * (log_p - log_ref)).sum(dim=-1)
    if kl == "urkl":
        return (p * (log_p - log_ref) + ref - p).sum(dim=-1)
    raise ValueError(f"unknown kl {kl!r}: use fkl, rkl, ufkl or urkl")


def objective(log_p, rewards, beta, kl, log_ref):
    r"""J = E_pi[R] - beta D over whole responses: log_p, rewards, log_ref [15] -> scalar."""
    return (log_p.exp() * rewards).sum() - beta * divergence(kl, log_p, log_ref)


def token_objective(logits, old_logits, rewards, beta, kl, ref_logits):
    r"""What a loss with a ratio per TOKEN maximises [derived]: pi chooses one token, pi_old everything around it.

    J_tok = sum_s d_old(s) ( sum_v pi(v|s) Q_old(s, v) - beta D(s) ), with d_old(s) the probability that pi_old passes
    prefix s, Q_old(s, v) = E_old[R | s, v], and D(s) between the two distributions of the next token. At pi = pi_old
    its reward part has the gradient of E_pi[R]. Away from pi_old it has not, because the prefixes remain pi_old's. D
    leaves out how a token changes the divergence at later tokens.
    """
    old = token_log_probs(old_logits).sum(dim=1).exp()  # [15]
    visits = torch.zeros(7, 3, dtype=old.dtype)  # [7, 3], probability that pi_old passes s and takes v there
    returns = torch.zeros(7, 3, dtype=old.dtype)  # [7, 3], the same times R
    where = (STATES[MASK], TOKENS[MASK])
    visits.index_put_(where, old[:, None].expand(15, 3)[MASK], accumulate=True)
    returns.index_put_(where, (old * rewards)[:, None].expand(15, 3)[MASK], accumulate=True)
    log_p = logits.log_softmax(dim=-1)  # [7, 3]
    value = (log_p.exp() * returns / visits).sum(dim=-1)  # [7]
    cost = divergence(kl, log_p, ref_logits.log_softmax(dim=-1))  # [7]
    return (visits.sum(dim=-1) * (value - beta * cost)).sum()


def gradient(function, parameters):
    r"""The gradient of a scalar function at `parameters`, by autograd."""
    parameters = parameters.detach().clone().requires_grad_()
    return torch.autograd.grad(function(parameters), parameters)[0]


def relative_error(got, wanted):
    r"""| got - wanted | / | wanted |, a float."""
    return ((got - wanted).norm() / wanted.norm()).item()


def main():
    old_logits, beta = random_policy(0), 0.02
    logits = old_logits + 0.5 * random_policy(1)
    old, rewards = token_log_probs(old_logits).sum(dim=1), random_rewards(3)  # [15]
    ref = token_log_probs(random_policy(2)).sum(dim=1)  # [15]
    print("response   reward   pi_old   pi_theta")
    for response, r, p_old, p in zip(RESPONSES, rewards, old.exp(), token_log_probs(logits).sum(dim=1).exp()):
        print(f"{' '.join(map(str, response)):9s} {r:7.3f} {p_old:8.4f} {p:10.4f}")

    def right(log_probs, y):  # -w R + beta w k3(pi_ref / pi_theta): the reverse KL, weighted like the reward
        w, l = (log_probs - old[y]).exp(), log_probs - ref[y]
        return -w * rewards[y] + beta * w * ((-l).exp() - 1 + l)

    def wrong(log_probs, y):  # GRPO's: the same without the weight of the penalty
        w, l = (log_probs - old[y]).exp(), log_probs - ref[y]
        return -w * rewards[y] + beta * ((-l).exp() - 1 + l)

    wanted = -gradient(lambda x: objective(token_log_probs(x).sum(dim=1), rewards, beta, "rkl", ref), logits)
    print("\nRelative error of the gradient against the exact one of E[R] - 0.02 KL(pi_theta || pi_ref):\n")
    print("responses sampled from pi_old     right loss     wrong loss")
    generator = torch.Generator().manual_seed(4)
    for n in (10, 100, 1000, 10_000, 100_000, None):
        y = torch.arange(15) if n is None else torch.multinomial(old.exp(), n, True, generator=generator)
        weight = old.exp() if n is None else torch.full((n,), 1 / n, dtype=old.dtype)
        errors = []
        for loss in (right, wrong):
            got = gradient(lambda x: (weight * loss(token_log_probs(x).sum(dim=1)[y], y)).sum(), logits)
            errors.append(relative_error(got, wanted))
        print(f"{'all 15, by their probability' if n is None else n:>29}{errors[0]:15.1e}{errors[1]:15.1e}")


if __name__ == "__main__":
    main()
