r"""The exercises: topic, level, points, where to read, and the hint that `--hint` shows. No solutions here."""

from typing import NamedTuple

NOTEBOOKS = {1: "01_verifiable_rewards", 2: "02_rollouts", 3: "03_policy_gradients", 4: "04_kl_estimators",
             5: "05_pmd_mean", 6: "06_rpg", 7: "07_off_policy", 8: "08_a_whole_run"}


class Exercise(NamedTuple):
    level: str  # easy: from the definition; medium: a trap or a derivation; hard: both, or a small program
    points: int
    tutorial: int
    section: str  # a heading of that notebook
    hint: str

    @property
    def read(self):
        return f'Read tutorial {self.tutorial}, "{self.section}"; --hint gives a hint'


TOPICS = {
    "ex01_rewards": {
        "extract_answer": Exercise(
            "easy", 3, 1, "Extraction: one place, one answer",
            "str.rpartition cuts at the last marker, tells whether there was one. An answer is text: keep its minus."),
        "is_equivalent": Exercise(
            "medium", 4, 1, "Equivalence: the same number, exactly",
            'fractions.Fraction reads "0.75" and "3/4" exactly, and raises ValueError or ZeroDivisionError otherwise.'),
        "math_reward": Exercise("easy", 2, 1, "Shaped rewards", "Refuse the bonus first. Then three cases, in the "
                                "order of the docstring."),
        "length_reward": Exercise(
            "medium", 3, 1, "Shaped rewards",
            "reshape(-1, group_size), amin and amax with keepdim; torch.where twice; nothing may divide by zero."),
    },
    "ex02_rollouts": {
        "pad_left": Exercise("easy", 2, 2, "The layout of a batch", "Build the mask from lengths, not from tokens."),
        "positions": Exercise("easy", 2, 2, "The layout of a batch", "cumsum along the row, minus one; -1 is no "
                              "position."),
        "response_mask": Exercise(
            "medium", 4, 2, "The layout of a batch",
            "torch.isin; count the eos tokens strictly before each position: cumsum minus the token itself."),
        "response_log_probs": Exercise(
            "medium", 4, 2, "Sampler and trainer must agree",
            "width = mask.shape[1]; logits[:, -width - 1:-1]; divide, log_softmax(-1), then gather."),
        "inverse_cdf": Exercise("medium", 3, 2, "One token at a time", "exp, cumsum, then count the entries that are "
                                "<= u. What happens at u = 0?"),
    },
    "ex03_policy_gradients": {
        "reinforce_loss": Exercise(
            "easy", 3, 3, "A bandit small enough to list",
            "For [N, T], advantages must become [N, 1]. Beware of N = T, where [N] broadcasts along the wrong axis."),
        "group_mean_advantages": Exercise("easy", 2, 3, "The group mean, and what it costs",
                                          "reshape(-1, group_size): a row is a prompt. A group of equal rewards gives "
                                          "zeros."),
        "leave_one_out_advantages": Exercise(
            "medium", 3, 3, "The group mean, and what it costs",
            "The mean of the OTHER rewards. Their sum is the sum minus one's own; how many others are there?"),
        "grpo_advantages": Exercise(
            "medium", 4, 3, "What dividing by the standard deviation does",
            "Decide which groups are equal by comparing the rewards (amax == amin), not by std == 0: the mean of eight "
            "0.7 is not 0.7."),
        "token_mean": Exercise("easy", 3, 3, "Length: how tokens are added up", "torch.where, not a product: 0 * nan "
                               "is nan."),
        "dr_grpo_mean": Exercise("medium", 3, 3, "Length: how tokens are added up",
                                 "1 / (N * max_new_tokens) times one sum. The length of a response must not occur."),
    },
    "ex04_kl_estimators": {
        "k2": Exercise("easy", 2, 4, "Value", "Integrate log p - log q over log p, from where it is 0."),
        "k3": Exercise("medium", 3, 4, "Value", "With x = log q - log p it is e^x - 1 - x. For tiny x that loses all "
                       "its digits: torch.expm1."),
        "divergence": Exercise("medium", 4, 4, "Value", "Forward means that the reference is in front, and is what the "
                               "expectation is under. Which is a, which is b?"),
        "corrected_grpo_penalty": Exercise(
            "hard", 4, 4, "GRPO's missing weight",
            "w k3, w = pi_theta / pi_old. The gradient must flow through w too: with w detached it is the forward "
            "KL's."),
    },
    "ex05_pmd_mean": {
        "pmd_part_policy": Exercise(
            "medium", 3, 5, "One step of mirror descent",
            "The derivative gives r - tau (log(pi/pi_t) + 1) = const. So pi is pi_t e^(r/tau), normalised: a softmax "
            "of log pi_t + r/tau does not overflow."),
        "pmd_part_advantages": Exercise(
            "medium", 4, 5, "Why Z is hard",
            "The log of a mean is the logsumexp minus log G. As tau grows A becomes r minus the mean."),
        "pmd_loss": Exercise("medium", 5, 5, "The same step as a regression",
                             "(A - tau s)^2 times a constant, with s a sum over the response's tokens and no mean. "
                             "Differentiate to find the constant."),
        "pmd_mean_policy": Exercise(
            "hard", 6, 5, "What does the mean optimise?",
            "log rho + lam rho = A / tau. Two bisections. Inside: for a given lam, s + lam e^s = A/tau has one root s, "
            "as the left side rises. Outside: E[e^s] falls as lam rises from 0 to max(A)/tau, where every s is at most "
            "0. 100 halvings each, float64; s between -1.1e3 and 1.1e3 will do."),
    },
    "ex06_rpg": {
        "kl_weight": Exercise(
            "medium", 3, 6, "The weight of each",
            "d(pi)/d(log pi) = pi. So sum pi_theta f becomes E_old[w (f + f')] with f' the derivative of f by log "
            "pi_theta, and sum pi_ref f becomes E_old[q f']."),
        "rkl_loss": Exercise("medium", 3, 6, "The weight of each", "KL(pi_theta || pi_ref) = E_old[w l]. The + 1 of "
                             "weight comes from differentiating l: do not detach it."),
        "ufkl_loss": Exercise("medium", 3, 6, "The weight of each", "KL(pi_ref || pi_theta) = E_old[-q l]; the mass "
                              "term adds sum (pi_theta - pi_ref). Three terms of D, in w, q and l."),
        "urkl_loss": Exercise("medium", 3, 6, "Mass terms", "RKL's loss with one more term: sum (pi_ref - pi_theta) is "
                              "E_old[q - w], and theta does not change q."),
        "reinforce_urkl_loss": Exercise("hard", 4, 6, "The weight of each", "The weight is urkl's in kl_weight. All of "
                                        "it is a constant: detach w and l."),
    },
    "ex07_off_policy": {
        "ppo_clip_loss": Exercise(
            "medium", 3, 7, "Clip regions of Alg. 1 and 2",
            "-min(w A, clip(w, 1 - eps_low, 1 + eps_high) A). Write down the four corners (sign of A, w small or "
            "large) and check which of the two is the minimum in each."),
        "dual_clip_loss": Exercise(
            "hard", 5, 7, "Clip regions of Alg. 1 and 2",
            "Detach Ahat: then the gradient of -w Ahat is -w Ahat. Its sign decides, not that of A. Ahat >= 0: PPO's "
            "clip; Ahat < 0: the smaller of that and -c Ahat. torch.maximum, torch.minimum, torch.where."),
        "gspo_loss": Exercise("medium", 3, 7, "Why samples are never quite on policy",
                              "s = exp of the mean over the response's tokens of log w: no product, no arithmetic mean."
                              " Then ppo_clip_loss with s."),
    },
    "ex08_whole_run": {
        "certificate": Exercise(
            "hard", 5, 6, "The certificate",
            "One leaf: x = logits.clone().requires_grad_(). Two calls of autograd.grad at x: of (old.exp() * "
            "loss(...)).sum() and of objective(...). The sampler's probabilities are constants."),
        "collapsing_loss": Exercise(
            "medium", 2, 3, "Variance: which constant is best?",
            "Every reward is positive. What does a loss without a baseline do to any response that happens to be drawn?"
            " And with stale samples?"),
        "mended_loss": Exercise("medium", 3, 7, "Never refreshed: where does each loss come to rest?",
                                "Subtract the mean of the rewards given: half of what is drawn must lose."),
        "new_advantages": Exercise("easy", 2, 3, "The group mean, and what it costs",
                                   "The baseline of a response must not depend on its own reward."),
        "new_loss": Exercise("hard", 5, 5, "The regulariser that was there all the time",
                             "Each sum over pi or pi_old is an expectation under pi_old of something in w: w A, "
                             "w log w and (w - 1)^2."),
    },
}
EXERCISES = {name: exercise for exercises in TOPICS.values() for name, exercise in exercises.items()}
POINTS = sum(exercise.points for exercise in EXERCISES.values())
