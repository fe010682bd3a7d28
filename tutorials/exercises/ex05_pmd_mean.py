r"""Exercise 5: PMD-mean. Tutorial 5; arXiv 2602.05933, Kimi k1.5 (2501.12599) eq. 2 and 3.

The mirror-descent step max_pi E_pi[r] - tau KL(pi || pi_t), as a regression. Grade with
`pytest tutorials/exercises/test_ex05_pmd_mean.py`.
"""
import torch


def pmd_part_policy(old_probs, rewards, tau):
    r"""The policy that maximises E_pi[r] - tau KL(pi || pi_t): derive it, a multiplier for sum pi = 1 (k1.5 eq. 2).

    old_probs: pi_t [K] summing to 1, rewards [K], tau > 0 in units of reward -> probs [K] summing to 1. It must not
    overflow at tau = 0.001.

    Worked: old_probs (0.1, 0.9), rewards (1, 0), tau = 1: (0.232, 0.768).
    Level: medium.
    """
    raise NotImplementedError


def pmd_part_advantages(rewards, group_size, tau):
    r"""PMD-part's A (k1.5): r - tau log Z, where Z = E_{pi_t}[exp(r / tau)] is replaced by its mean over the group.

    rewards [N], group after group; tau > 0 in units of reward -> [N]. It must not overflow at tau = 0.001.

    Worked: [1, 0, 0, 0], tau = 1: log((e + 3) / 4) = 0.357, so [0.643, -0.357, -0.357, -0.357].
    Level: medium.
    """
    raise NotImplementedError


def pmd_loss(log_probs, old_log_probs, advantages, mask, tau):
    r"""The regression, per response: a square that is 0 where tau s = A, with s = log pi_theta(y) - log pi_t(y).

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, mask [N, T] bool -> loss [N].
    Its scale is such that the gradient is -(A - tau s) grad log pi_theta(y) (k1.5 eq. 3): the plain policy gradient at
    s = 0. A response is one event. No gradient flows into old_log_probs or advantages; what stands outside the mask,
    nan too, reaches neither value nor gradient.

    Worked: A = 0.5, tau = 0.1, s = 0.2: 1.152, and the gradient at each of its tokens is -0.48.
    Level: medium.
    """
    raise NotImplementedError


def pmd_mean_policy(old_probs, rewards, tau):
    r"""What the regression with A = r - E_{pi_t}[r] ends at: the policy that minimises E_{pi_t}[(A - tau log rho)^2].

    rho = pi / pi_t, and sum pi = 1, that is E_{pi_t}[rho] = 1. Derive the equation of each rho with a multiplier mu for
    that condition. With lam = mu / (2 tau^2) it has two terms on the left, and lam = KL(pi_t || pi).
    old_probs [K] positive and summing to 1, rewards [K], tau in units of reward -> (probs [K], lam scalar), float64
    tensors, to five digits. K may be any number. (Derived in tutorial 5; the abstract of 2602.05933 states the claim.)

    Worked: old_probs (0.1, 0.9), rewards (1, 0), tau = 0.1: probs (0.746, 0.254), lam = 0.937.
    Level: hard.
    """
    raise NotImplementedError
