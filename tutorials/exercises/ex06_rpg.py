r"""Exercise 6: RPG. Tutorial 6; rpg_losses.py; arXiv 2505.17508, Props. 3.2, 3.6, E.3, 4.1, Tables 1, 2 and 4.

Objective J = E_{pi_theta}[R] - beta D, estimated from y ~ pi_old. In every function

    w = pi_theta / pi_old,     l = log(pi_theta / pi_ref),     q = pi_ref / pi_old

log_probs, old_log_probs, ref_log_probs [N] in nats, one per response; advantages [N] and beta in units of reward ->
loss [N], which is minimised. ref_log_probs None: the reference is the sampler, q = 1 and l = log w (what the paper
writes; another reference is derived in rpg_losses.py). Gradient flows into log_probs only. Inputs may be float16: take
ratios in float32 at least, and bound nothing with clamp, which kills the gradient.

The graders compare the gradient of every event with that of the exact objective, by enumeration. Grade with
`pytest tutorials/exercises/test_ex06_rpg.py`.
"""
import torch


def rkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""D = KL(pi_theta || pi_ref), differentiable:  w (-A + beta l)  (Prop. E.3, Table 4).

    The weight of grad log pi_theta in grad J is w (A - beta (l + 1)).
    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: 2 (-1 + 0.1 log 2) = -1.861.
    Hint: the "+ 1" of the gradient comes from differentiating l itself. Do not detach l.
    """
    raise NotImplementedError("missing: the RKL loss. Read tutorial 6, and the table at the top of rpg_losses.py")


def ufkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""D = UKL(pi_ref || pi_theta), differentiable:  -w A + beta (w - q l - q)  (Prop. 3.2, Table 1).

    The weight of grad log pi_theta in grad J is w A - beta (w - q).
    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 + 0.1 (2 - log 2 - 1) = -1.969.
    Hint: three terms, each with a gradient you can check: w has w, q l has q, the last q has none.
    """
    raise NotImplementedError("missing: the UFKL loss. Read tutorial 6, and the table at the top of rpg_losses.py")


def urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""D = UKL(pi_theta || pi_ref), differentiable:  -w A + beta (w l - w)  (Prop. 3.6, Table 1).

    The weight of grad log pi_theta in grad J is w (A - beta l).
    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -2 + 0.1 (2 log 2 - 2) = -2.061.
    Hint: RKL's loss with one more term, which is the mass term.
    """
    raise NotImplementedError("missing: the URKL loss. Read tutorial 6, and the table at the top of rpg_losses.py")


def reinforce_urkl_loss(log_probs, old_log_probs, advantages, beta, ref_log_probs=None):
    r"""D = UKL(pi_theta || pi_ref), REINFORCE style:  -stopgrad(w (A - beta l)) log pi_theta  (Table 2, Prop. 4.1).

    The gradient of urkl_loss, and not its value.
    Worked: pi_theta 0.4, pi_old = pi_ref = 0.2, A = 1, beta = 0.1: -1.861 log 0.4 = 1.706.
    Hint: the whole weight is a constant: detach w and l.
    """
    raise NotImplementedError("missing: the URKL loss in REINFORCE style. Read tutorial 6, and the top of "
                              "rpg_losses.py")
