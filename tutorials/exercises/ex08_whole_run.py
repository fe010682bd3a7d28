r"""Exercise 8: certify, break, mend, add. Tutorials 6, 7 and 8; enumeration.py as a model of how to check.

Five larger tasks. Nothing here stands in a module of the project. Grade with
`pytest tutorials/exercises/test_ex08_whole_run.py`; `python tutorials/exercises/ex08_whole_run.py` shows your two runs.
"""
import torch


def certificate(loss, objective, logits, old_logits):
    r"""How far the expected gradient of a loss is from minus the gradient of the objective, by enumeration.

    loss(log_probs [K], old_log_probs [K]) -> [K], the loss of each of K responses, which are sampled from pi_old;
    objective(log_probs [K]) -> scalar J, to be maximised. Both policies are softmaxes: logits, old_logits [K].
    -> float: | g + grad J | / | grad J |, g the gradient at `logits` of the loss's expectation under the sampler, which
    is fixed. About 1e-16 for a right loss, 2 for the right one with the wrong sign, 1 for a loss without a gradient.

    Worked: K = 2, all logits 0, J = pi(first response), loss -2 w R with R = (1, 0): 1.
    Level: hard.
    """
    raise NotImplementedError


def collapsing_loss(log_probs, old_log_probs, rewards):
    r"""A loss with which the run of bandit.py collapses: nearly all probability on one response, mostly not the best.

    log_probs, old_log_probs, rewards [N], one per sampled response -> loss [N].
    It must be an honest mistake: at the first step of a round its expected gradient is that of -E_pi[R] (so no wrong
    sign, and no factor). Eight runs: in at least six the entropy ends below 0.1 nats, and E[R] is below 0.9 on average,
    where 1 is the best.
    Level: medium.
    """
    raise NotImplementedError


def mended_loss(log_probs, old_log_probs, rewards):
    r"""The same, mended: of the same eight runs E[R] ends above 0.95 on average, and in none below 0.8.

    You know the rewards of the samples given, not the best reward that there is. One change to your collapsing loss is
    enough. Say in a comment why it collapsed.
    Level: medium.
    """
    raise NotImplementedError


def new_advantages(rewards, group_size):
    r"""The advantages of a new objective, whose loss is below: R minus a baseline, with the true expected gradient.

    rewards [N], group after group -> [N]. On policy, summed over all groups of G responses by their probability, the
    mean of A grad log pi must be the gradient of E_pi[R], no fraction of it; and equal rewards must give 0.
    Level: easy.
    """
    raise NotImplementedError


def new_loss(log_probs, old_log_probs, advantages, tau, lam):
    r"""The loss per event of an objective that the project does not have: PMD-mean's implicit one, made explicit.

        J = E_pi[R] - tau KL(pi || pi_old) - (tau lam / 2) chi2(pi || pi_old)
        KL(pi || pi_old) = sum pi log(pi / pi_old),     chi2 = sum pi_old (pi / pi_old - 1)^2

    With lam held at KL(pi_old || pi), its maximiser is where PMD-mean's regression ends (tutorial 5).
    log_probs, old_log_probs [N] in nats, one per response sampled from pi_old; advantages [N] (for R) and tau in units
    of reward, lam a number -> loss [N]. Probabilities are free numbers, as in exercise 6: KL, not UKL. Gradient flows
    into log_probs only; only the gradient is graded.

    Worked: w = pi/pi_old = 2, A = 1, tau = 0.1, lam = 1: the gradient is -2 (1 - 0.1 (log 2 + 1) - 0.1) = -1.461.
    Level: hard.
    """
    raise NotImplementedError


# Run it on the embedded task: "An objective of your own" in README.md shows the entry of the table that train.py needs.
# Its loss calls new_loss with each response's summed log-probs; lam is a number that you choose.


if __name__ == "__main__":
    from bandit import run

    for name, loss in (("collapsing_loss", collapsing_loss), ("mended_loss", mended_loss)):
        ends = [run(loss, seed) for seed in range(8)]
        print(f"{name:18s}" + "  ".join(f"E[R] {reward:.2f}, entropy {entropy:.2f}" for reward, entropy in ends))
