r"""Exercise 5: PMD-mean. Tutorial 5; pmd_mean.py; arXiv 2602.05933, Kimi k1.5 (2501.12599) eq. 2 and 3.

The mirror-descent step max_pi E_pi[r] - tau KL(pi || pi_t), as a regression. Grade with
`pytest tutorials/exercises/test_ex05_pmd_mean.py`.
"""
import torch


def pmd_part_policy(old_probs, rewards, tau):
    r"""The solution of the step: pi*(y) = pi_t(y) exp(r(y)/tau) / Z (k1.5 eq. 2).

    old_probs [K] summing to 1, rewards [K], tau > 0 in units of reward -> probs [K] summing to 1.

    Worked: old_probs (0.1, 0.9), rewards (1, 0), tau = 1: 0.1 e / (0.9 + 0.1 e) = 0.232.
    Hint: exp(r/tau) overflows at tau = 0.001. A softmax of log pi_t + r/tau does not.
    """
    raise NotImplementedError("missing: pi_t exp(r/tau) / Z. Read tutorial 5, and `pmd_part_policy` in pmd_mean.py")


def pmd_part_advantages(rewards, group_size, tau):
    r"""A_i = r_i - tau log mean_j exp(r_j / tau), the mean over its group (PMD-part, k1.5).

    rewards [N], group after group; tau > 0 in units of reward -> [N].

    Worked: [1, 0, 0, 0], tau = 1: log((e + 3) / 4) = 0.357, so [0.643, -0.357, -0.357, -0.357].
    Hint: logsumexp; the log of a mean is the logsumexp minus log G. As tau grows this becomes r minus the mean.
    """
    raise NotImplementedError("missing: r - tau log mean exp(r/tau). Read tutorial 5, and `pmd_part_advantages` in "
                              "pmd_mean.py")


def pmd_loss(log_probs, old_log_probs, advantages, mask, tau):
    r"""The regression, per response: (tau/2) (A/tau - s)^2, s = sum over its tokens of log_probs - old_log_probs.

    log_probs, old_log_probs [N, T] in nats, advantages [N] and tau in units of reward, mask [N, T] bool -> loss [N].
    Its gradient is -(A - tau s) grad log pi_theta(y) (k1.5 eq. 3). No gradient flows into old_log_probs or advantages;
    what stands outside the mask, nan too, reaches neither value nor gradient.

    Worked: A = 0.5, tau = 0.1, s = 0.2: 0.05 * 4.8^2 = 1.152.
    Hint: a response is one event, so its log-ratio is a sum and not a mean.
    """
    raise NotImplementedError("missing: the squared regression error of each response. Read tutorial 5, and `pmd_loss` "
                              "in pmd_mean.py")


def pmd_mean_policy(old_probs, rewards, tau):
    r"""What the regression with A = r - E_{pi_t}[r] converges to.

        rho = pi / pi_t solves   log rho + lam rho = A / tau,   with lam >= 0 such that   E_{pi_t}[rho] = 1
        that is rho = W(lam e^{A/tau}) / lam, W Lambert's W; and lam = KL(pi_t || pi)

    old_probs [K] positive and summing to 1, rewards [K], tau in units of reward -> (probs [K], lam scalar), float64.
    (Derived in pmd_mean.py; the abstract of 2602.05933 states the claim.)

    Worked: old_probs (0.1, 0.9), rewards (1, 0), tau = 0.1: probs (0.746, 0.254), lam = 0.937.
    Hint: two bisections. Inside: for a given lam, s + lam e^s = A/tau has one root s, as the left side rises. Outside:
    E[e^s] falls as lam rises from 0 to max(A)/tau, where every s is at most 0. 100 halvings each; float64. s between
    -1.1e3 and 1.1e3 is enough for the graders, and rounding e^s up to inf does no harm in a bisection.
    """
    raise NotImplementedError("missing: rho and lam. Read tutorial 5, and `pmd_mean_policy` in pmd_mean.py")
