r"""Bugs put in on purpose: each is a small patch of a copy, and the named test must fail on it and pass without it.

A row: what goes wrong (with its number where it is one of the known pitfalls of real trainers), file and function, the
old text (once in that function), the new text, and the check, a call of a test in tests/test_<file>.py. The test module
is loaded anew on top of the patched copy; nothing in the checkout changes.

Pitfalls: 1 empty response, 7 zero-variance group, 8 group of one, 9 min and max swapped in a clip, 10 sign or direction
of a KL, 11 k1 as a loss, 12 means of microbatch means, 14 1/|o| kept in Dr. GRPO, 22 a clamp that kills a gradient,
23 exp in half precision, 24 leave-one-out by subtraction, 27 0 times inf after a where, 28 normalised rounding, 34 a
calculation cut in the middle.
"""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FLOAT32 = ".to(torch.promote_types(x.dtype, torch.float32))"
NAIVE_STANDARDISED = """grouped = rewards.reshape(-1, group_size)
    std = grouped.std(dim=1, keepdim=True, correction=0)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) / (std + 1e-8)).reshape(-1)
    """


def enumerated(name, other_reference=False):
    return lambda t: t.test_gradient_by_enumeration(name, t.FAR, t.REF if other_reference else None)


def masses(name):
    return lambda t: t.test_mass_terms_with_free_probabilities(name, None)


def grid(name, kl="urkl"):
    return lambda t: t.test_clip_regions_on_a_grid(name, kl)


def extreme(name, beta):
    r"""The grid of tests/test_extremes.py, on the patched copy."""
    return lambda t: load("test_extremes_on_a_copy", ROOT / "tests" / "test_extremes.py") \
        .test_finite_and_exact_wherever_it_fits_into_float32(name, True, beta)


MUTATIONS = [
    # Mass terms: nothing that a normalised policy would show
    ("mass term dropped", "rpg_losses", "ufkl_loss", "(-a + beta)", "-a", masses("ufkl_loss")),
    ("mass term dropped", "rpg_losses", "urkl_loss", "(l - 1)", "l", masses("urkl_loss")),
    ("mass term added", "rpg_losses", "rkl_loss", "beta * l)", "beta * (l - 1))", masses("rkl_loss")),
    ("mass term added", "rpg_losses", "fkl_loss", "beta * q * log_probs", "beta * (q * log_probs - w)",
     masses("fkl_loss")),
    ("mass term dropped", "rpg_losses", "reinforce_ufkl_loss", "beta * (w - q)", "beta * (-q)",
     masses("reinforce_ufkl_loss")),
    ("mass term added", "rpg_losses", "reinforce_rkl_loss", "(l + 1)", "l", masses("reinforce_rkl_loss")),
    ("mass term added", "rpg_losses", "reinforce_urkl_loss", "beta * l)", "beta * (l + 1))",
     masses("reinforce_urkl_loss")),
    ("mass term dropped", "rpg_losses", "dual_clip_loss", "beta * (u - v)", "beta * -v",
     masses("dual_clip_loss ufkl")),
    ("mass term added", "rpg_losses", "reinforce_dual_clip_loss", "a - beta * l}", "a - beta * (l + 1)}",
     masses("reinforce_dual_clip_loss urkl")),
    # Direction, sign and weight of the KL
    ("10 directions swapped", "rpg_losses", "fkl_loss", "-w * a - beta * q * log_probs",
     "w * (-a + beta * (log_probs - ref))", enumerated("fkl_loss")),
    ("10 directions swapped", "rpg_losses", "rkl_loss", "w * (-a + beta * l)", "-w * a - beta * log_probs",
     enumerated("rkl_loss")),
    ("10 sign", "rpg_losses", "urkl_loss", "+ beta", "- beta", enumerated("urkl_loss")),
    ("10 sign", "rpg_losses", "reinforce_fkl_loss", "+ beta", "- beta", enumerated("reinforce_fkl_loss")),
    ("10 log-ratio upside down", "rpg_losses", "reinforce_dual_clip_loss", "(log_probs - ref)",
     "(ref - log_probs)", enumerated("reinforce_dual_clip_loss urkl")),
    ("KL without importance weight", "rpg_losses", "urkl_loss", "w * (-a + beta * (l - 1))",
     "-w * a + beta * l.square() / 2",
     enumerated("urkl_loss")),
    ("KL weighted where it must not be", "rpg_losses", "fkl_loss", "beta * q * log_probs", "beta * w * log_probs",
     enumerated("fkl_loss")),
    ("reference's weight forgotten", "rpg_losses", "fkl_loss", "beta * q * log_probs", "beta * log_probs",
     enumerated("fkl_loss", other_reference=True)),
    ("reference ignored", "rpg_losses", "reinforce_rkl_loss", "log_probs - ref ", "log_probs - old ",
     enumerated("reinforce_rkl_loss", other_reference=True)),
    ("stop-gradient missing", "rpg_losses", "reinforce_urkl_loss", ".detach() * log_probs", " * log_probs",
     enumerated("reinforce_urkl_loss")),
    ("stop-gradient too many", "rpg_losses", "rkl_loss", "log_probs - ref ", "(log_probs - ref).detach() ",
     masses("rkl_loss")),
    # The clip
    ("Ahat not detached", "rpg_losses", "dual_clip_loss", "(log_probs - ref).detach()", "log_probs - ref",
     grid("dual_clip_loss")),
    ("Ahat not detached", "rpg_losses", "dual_clip_loss", "(log_probs - ref).detach()", "log_probs - ref",
     enumerated("dual_clip_loss fkl")),
    ("9 min and max swapped", "rpg_losses", "dual_clip_loss", "log_w.clamp(max=high)", "log_w.clamp(min=high)",
     grid("dual_clip_loss")),
    ("9 sign of the advantage", "rpg_losses", "dual_clip_loss", "a_hat >= 0", "a_hat <= 0", grid("dual_clip_loss")),
    ("9 sign of the advantage", "rpg_losses", "reinforce_dual_clip_loss", "a_hat >= 0", "a_hat <= 0",
     grid("reinforce_dual_clip_loss")),
    ("9 sign of A, not of Ahat", "rpg_losses", "reinforce_dual_clip_loss", "a_hat >= 0", "a >= 0",
     grid("reinforce_dual_clip_loss", "rkl")),
    ("no dual clip", "rpg_losses", "dual_clip_loss", "log_w.clamp(low, top)", "log_w.clamp(low)",
     grid("dual_clip_loss")),
    ("no dual clip", "rpg_losses", "reinforce_dual_clip_loss", " & (w < c)", "", grid("reinforce_dual_clip_loss")),
    ("clip range swapped", "rpg_losses", "dual_clip_loss", "[max(0, 1 - eps_low), 1 + eps_high, c]",
     "[1 - eps_high, 1 + eps_low, c]", grid("dual_clip_loss")),
    ("weight clipped, not the event", "rpg_losses", "reinforce_dual_clip_loss",
     "torch.where(alive, log_probs, log_probs.detach())", "log_probs", grid("reinforce_dual_clip_loss")),
    # Constants, shapes, numbers
    ("gradient into the sampler", "rpg_losses", "rkl_loss", "x.detach()", "x",
     lambda t: t.test_only_log_probs_get_a_gradient("rkl_loss")),
    ("advantages along the wrong axis", "rpg_losses", "ufkl_loss",
     "a if a.shape == old.shape else a[:, None]", "a",
     lambda t: t.test_weight_of_every_event("ufkl_loss", (4, 4))),
    ("22 penalty clamped", "rpg_losses", "rkl_loss", "log_probs - ref ", "(log_probs - ref).clamp(-10, 10) ",
     lambda t: t.test_no_safeguard_kills_the_gradient("rkl_loss", 15.0)),
    ("22 ratio clamped", "rpg_losses", "urkl_loss", "(log_probs - old).exp()", "(log_probs - old).exp().clamp(max=100)",
     lambda t: t.test_no_safeguard_kills_the_gradient("urkl_loss", 15.0)),
    ("23 exp in half precision", "rpg_losses", "urkl_loss", FLOAT32, "",
     lambda t: t.test_half_precision_ratios("urkl_loss")),
    ("23 exp in half precision", "rpg_losses", "reinforce_fkl_loss", FLOAT32, "",
     lambda t: t.test_half_precision_ratios("reinforce_fkl_loss")),
    ("float64 lost", "rpg_losses", "ufkl_loss", FLOAT32, ".float()",
     masses("ufkl_loss")),
    ("clipped ratio overflows to nan", "rpg_losses", "dual_clip_loss", "u, v = log_u.exp()",
     "u, v = torch.where(a_hat >= 0, log_w.exp().clamp(max=1 + eps_high), log_w.exp().clamp(1 - eps_low, c))",
     lambda t: t.test_overflowing_ratios_are_clipped_without_nan("dual_clip_loss", "urkl")),
    # The argument chosen before exp, not the result after it
    ("27 (A + beta q/w) times w", "rpg_losses", "dual_clip_loss", "u * a + beta * v", "u * a_hat",
     extreme("dual_clip_loss fkl", 0.1)),
    ("27 (A + beta q/w) times w", "rpg_losses", "reinforce_dual_clip_loss", "w * a - beta * (w - q)", "w * a_hat",
     extreme("reinforce_dual_clip_loss ufkl", 0.1)),
    ("27 0 times infinity", "rpg_losses", "dual_clip_loss", 'kl if beta else "urkl"', "kl",
     extreme("dual_clip_loss fkl", 0.0)),
    ("27 infinity minus infinity", "rpg_losses", "urkl_loss", "w * (-a + beta * (l - 1))",
     "-w * a + beta * (w * l - w)", lambda t: t.test_a_ratio_that_overflows_makes_the_loss_infinite("urkl_loss")),
    ("27 infinity minus infinity", "rpg_losses", "ufkl_loss", "w * (-a + beta)", "-w * a + beta * w",
     lambda t: t.test_a_ratio_that_overflows_makes_the_loss_infinite("ufkl_loss")),
    ("27 0 times infinity", "baselines", "grpo_loss", "(log_y + log_beta).exp()", "beta * log_y.exp()",
     extreme("grpo_loss", 0.0)),
    ("27 where after exp", "baselines", "grpo_loss", "log_w.clamp(max=88)", "log_w",
     lambda t: t.test_a_good_event_far_beyond_the_clip("grpo_loss")),
    ("27 where after exp", "baselines", "gspo_loss", "log_s.clamp(max=88)", "log_s",
     lambda t: t.test_a_good_event_far_beyond_the_clip("gspo_loss")),
    ("27 where after exp", "kl_estimators", "corrected_grpo_penalty", "torch.expm1(r.clamp(max=1))", "torch.expm1(r)",
     extreme("corrected_grpo_penalty", 0.0)),
    # Baselines
    ("7 zero variance over epsilon", "baselines", "grpo_advantages", "r = rewards.to(",
     NAIVE_STANDARDISED + "r = rewards.to(",
     lambda t: t.test_equal_rewards_give_exact_zeros(0.7, torch.float32)),
    ("7 zero variance by rounding", "baselines", "rloo_advantages", "r = r - r.amin(dim=1, keepdim=True)", "r = r * 1",
     lambda t: t.test_equal_rewards_give_exact_zeros(0.7, torch.float32)),
    ("7 zero variance over the batch", "baselines", "reinforce_pp_advantages",
     "tokens.max() - tokens.min() <=", "tokens.max() - tokens.min() < -",
     lambda t: t.test_reinforce_pp_zeros()),
    ("28 rounding of log-probs normalised", "baselines", "reinforce_pp_advantages", " + beta * k1_rounding.max()", "",
     lambda t: t.test_reinforce_pp_does_not_normalise_rounding(torch.float32, 5e-6, 0.1)),
    ("8 group of one", "baselines", "grpo_advantages", "torch.where(equal, 0.0, deviation / std)",
     "torch.where(equal, rewards.reshape(-1, group_size) if group_size == 1 else 0.0, deviation / std)",
     lambda t: t.test_a_group_of_one()),
    ("8 group of one", "baselines", "rloo_advantages", "group_size < 2", "group_size < 1",
     lambda t: t.test_a_group_of_one()),
    ("own reward in leave-one-out", "baselines", "rloo_advantages",
     "(r.sum(dim=1, keepdim=True) - r) / (group_size - 1)", "r.mean(dim=1, keepdim=True)",
     lambda t: t.test_expected_gradient_of_group_mean_and_leave_one_out(3, t.REWARDS)),
    ("9 min and max swapped", "baselines", "grpo_loss", "torch.minimum(", "torch.maximum(",
     lambda t: t.test_clip_regions_on_a_grid(0.2, 0.2)),
    ("9 hidden by a wide clip", "baselines", "grpo_loss", "torch.minimum(", "torch.maximum(",
     lambda t: t.test_clip_regions_on_a_grid(0.5, 4.0)),
    ("9 min and max swapped", "baselines", "gspo_loss", "torch.minimum(", "torch.maximum(",
     lambda t: t.test_clip_regions_on_a_grid(0.2, 0.2)),
    ("22 ratio clamped for both signs", "baselines", "grpo_loss", "torch.minimum(w * a, w.clamp", "(w.clamp",
     lambda t: t.test_clip_regions_on_a_grid(0.2, 0.28)),
    ("10 sign", "baselines", "grpo_loss", "+ beta_k3", "- beta_k3", lambda t: t.test_grpo_penalty_gradient()),
    ("10 direction", "baselines", "grpo_loss", "ref - log_probs", "log_probs - ref",
     lambda t: t.test_grpo_penalty_gradient()),
    ("10 KL in the reward, sign", "baselines", "reinforce_pp_advantages", "- beta * to_go", "+ beta * to_go",
     lambda t: t.test_reinforce_pp_follows_the_regularised_objective()),
    ("KL of the past in the reward", "baselines", "reinforce_pp_advantages", "k1.flip(1).cumsum(dim=1).flip(1)",
     "k1.cumsum(dim=1)", lambda t: t.test_reinforce_pp_follows_the_regularised_objective()),
    ("11 k1 as a loss", "baselines", "grpo_loss", "+ beta_k3", "- beta * log_y",
     lambda t: t.test_grpo_penalty_gradient()),
    ("23 exp in half precision", "baselines", "grpo_loss", FLOAT32, "",
     lambda t: t.test_half_precision(torch.float16)),
    ("sum for the mean in the sequence ratio", "baselines", "gspo_loss", " / mask.sum(dim=1).clamp(min=1)", "",
     lambda t: t.test_gspo_gradient_and_mask()),
    ("nan times a mask of 0", "baselines", "gspo_loss",
     "torch.where(mask, log_probs - old, 0.0)", "(log_probs - old) * mask", lambda t: t.test_gspo_gradient_and_mask()),
    ("short wrong answers rewarded", "rewards", "length_reward", "lam.clamp(max=0)", "lam",
     lambda t: t.test_length_reward()),
    ("mixed groups dropped", "rewards", "mixed_groups", "!= groups", "== groups", lambda t: t.test_mixed_groups()),
    # KL estimators
    ("10 direction", "kl_estimators", "k3", "log_q.to(dtype) - log_p.to(dtype)", "log_p.to(dtype) - log_q.to(dtype)",
     lambda t: t.test_gradient_of_every_use("reverse", "k3")),
    ("10 direction", "kl_estimators", "k1", "log_p.to(dtype) - log_q.to(dtype)", "log_q.to(dtype) - log_p.to(dtype)",
     lambda t: t.test_gradient_of_every_use("reverse", "k1")),
    ("weight without gradient", "kl_estimators", "corrected_grpo_penalty", "w, q, r = (log_p - log_old).exp()",
     "w, q, r = (log_p - log_old).detach().exp()",
     lambda t: t.test_corrected_grpo_penalty(t.OLD)),
    ("weight forgotten", "kl_estimators", "corrected_grpo_penalty", "w, q, r = (log_p - log_old).exp()",
     "w, q, r = torch.ones_like(log_p)",
     lambda t: t.test_corrected_grpo_penalty(t.OLD)),
    ("exp(x) - 1 - x", "kl_estimators", "k3", "torch.expm1(log_ratio)", "log_ratio.exp() - 1",
     lambda t: t.test_k3_keeps_its_digits_near_zero()),
    # Aggregation
    ("12 token count of the microbatch", "aggregation", "aggregate", "mask.sum() if num_tokens is None else num_tokens",
     "mask.sum()", lambda t: t.test_microbatches_add_up_to_the_whole("token-mean")),
    ("12 response count of the microbatch", "aggregation", "aggregate",
     "len(mask) if num_responses is None else num_responses", "len(mask)",
     lambda t: t.test_microbatches_add_up_to_the_whole("seq-mean-token-sum")),
    ("14 1/|o| kept in Dr. GRPO", "aggregation", "aggregate",
     "return per_response.sum() / (max(num_responses, 1) * max_new_tokens)",
     "return (per_response / lengths.clamp(min=1)).sum() / max(num_responses, 1)",
     lambda t: t.test_dr_grpo_does_not_know_the_response_length()),
    ("nan times a mask of 0", "aggregation", "aggregate", "torch.where(mask, losses, 0.0)", "(losses * mask)",
     lambda t: t.test_padding_reaches_neither_value_nor_gradient("token-mean", float("nan"))),
    ("1 empty response divides by zero", "aggregation", "aggregate", "lengths.clamp(min=1)", "lengths",
     lambda t: t.test_empty_responses_and_batches("seq-mean-token-mean")),
    ("sum in half precision", "aggregation", "aggregate",
     "losses = losses.to(torch.promote_types(losses.dtype, torch.float32))", "losses = losses + 0",
     lambda t: t.test_dtypes(torch.float16, torch.float32)),
    # PMD
    ("24 leave-one-out by subtraction", "pmd_mean", "pmd_part_advantages",
     "return (r - best - tau * log_mean).reshape(-1)",
     """if leave_one_out:
        best = r.amax(dim=1, keepdim=True)
        e = ((r - best) / tau).exp()
        log_mean = ((e.sum(dim=1, keepdim=True) - e) / (group_size - 1)).log()
    return (r - best - tau * log_mean).reshape(-1)""",
     lambda t: t.test_leave_one_out_far_below_the_left_out()),
    ("24 leave-one-out mean clamped", "pmd_mean", "pmd_part_advantages",
     "return (r - best - tau * log_mean).reshape(-1)",
     """top = r.amax(dim=1, keepdim=True)
    log_mean = (log_mean + (best - top) / tau).exp().clamp(min=1e-8).log()
    return (r - top - tau * log_mean).reshape(-1)""",
     lambda t: t.test_only_winner_of_eight_gets_exactly_one(0, torch.float64)),
    ("log of a mean that rounds to 1", "pmd_mean", "pmd_part_advantages", "torch.log1p(", "torch.log(1 + ",
     lambda t: t.test_part_is_mean_at_a_tau_beyond_rounding(1e16, False, torch.float64, 1e-14)),
    ("10 sign of the log-ratio", "pmd_mean", "pmd_loss", "(advantages.detach() - tau * s)",
     "(advantages.detach() + tau * s)", lambda t: t.test_loss_by_hand()),
    # Verifier
    ("34 a calculation is cut in the middle", "reward_math", "_quantity", "_QUANTITY.fullmatch(", "_QUANTITY.match(",
     lambda t: t.test_what_is_left_over_makes_it_no_number("18 - 2")),
    ("the last of two different numbers counts", "reward_math", "_number", "if quantity is not last", "if False",
     lambda t: t.test_a_calculation_is_never_cut("18 = 9 * 2 = 20")),
    ("one unit is as good as another", "reward_math", "_same_unit", "return False", "return True",
     lambda t: t.test_units_by_meaning(["miles", "mi"])),
    ("the reasons are part of the answer", "reward_math", "_without_reason",
     "return text[:reason.start()]", "return text", lambda t: t.test_an_explanation_is_cut(", because {}")),
    ("a remark about the answer hides it", "reward_math", "_find_phrase",
     "and _is_remark(answer, earlier)", "and False",
     lambda t: t.test_a_later_phrase_counts_only_with_an_answer(t.LATER[0])),
    ("removing spaces joins digits", "reward_math", "_canonical", r"(?<!\d)\s+|\s+(?!\d)|", r"\s|",
     lambda t: t.test_case_and_spaces("1 2x", "12x", False)),
]


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patched(source, function, old, new):
    r"""The source with `old`, which must occur once in `function`, replaced by `new`."""
    node = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function)
    body = ast.get_source_segment(source, node)
    code = body[body.index('"""', body.index('"""') + 3):]  # past the docstring
    assert code.count(old) == 1, f"{old!r} stands {code.count(old)} times in {function}"
    return source.replace(body, body[: -len(code)] + code.replace(old, new))


@pytest.mark.parametrize("what, file, function, old, new, check", MUTATIONS,
                         ids=[f"{file}.{function}: {what}" for what, file, function, *_ in MUTATIONS])
def test_the_bug_is_caught(what, file, function, old, new, check, tmp_path, monkeypatch):
    path, tests = ROOT / f"{file.replace('.', '/')}.py", ROOT / "tests" / f"test_{file.split('.')[-1]}.py"
    if not (path.is_file() and tests.is_file()):
        pytest.skip(f"{file}.py or its tests are not there")
    copy = tmp_path / path.name
    for source in (path.read_text(), patched(path.read_text(), function, old, new)):
        copy.write_text(source)
        monkeypatch.setitem(sys.modules, file, load(file, copy))
        suite = load(f"test_{file}_on_a_copy", tests)
        if source == path.read_text():
            check(suite)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(suite)


def test_the_table_covers_the_pitfalls_that_concern_a_loss():
    covered = {int(what.split()[0]) for what, *_ in MUTATIONS if what.split()[0].isdigit()}
    assert covered >= {1, 7, 8, 9, 10, 11, 12, 14, 22, 23, 24, 27, 28}
