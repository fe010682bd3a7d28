r"""studies/claims.py: exact claims hold, sampled ones run at a small size, a broken formula is noticed."""

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "studies"))

import claims  # noqa: E402

# The same claims as in main, on fewer problems.
SMALL = {
    "lambert_w": lambda: claims.claim_lambert_w(problems=2, taus=(0.3,)),
    "mixed_regulariser": lambda: claims.claim_mixed_regulariser(problems=2, taus=(0.3,)),
    "conservative": lambda: claims.claim_conservative(problems=1, taus=(0.1, 10.0), points=5),
    "few_rollouts": lambda: claims.claim_few_rollouts(ps=(0.1, 0.5), taus=(0.1, 10.0), groups=(4, 16)),
    "k3": lambda: claims.claim_k3(problems=5),
    "two_styles": lambda: claims.claim_two_styles(problems=1, betas=(0.3,)),
    "grpo_bias": lambda: claims.claim_grpo_bias(problems=4, steps=(0.0, 0.1, 1.0)),
    "clip": lambda: claims.claim_clip(seeds=3, steps=8, stales=(1, 4), lrs=(0.03,)),
    "reference": lambda: claims.claim_reference(seeds=3, steps=8, betas=(1e-4, 1.0), every=4),
}


@pytest.fixture(scope="module")
def results():
    return {name: claim() for name, claim in SMALL.items()}


@pytest.mark.parametrize("name", ["lambert_w", "mixed_regulariser", "k3", "two_styles", "grpo_bias"])
def test_exact_claims_hold(results, name):
    assert results[name]["verdict"] == "holds", results[name]["figure"]


@pytest.mark.parametrize("name, module, broken, formula", [
    ("lambert_w", claims, "pmd_mean_policy", lambda p, r, tau: (claims.pmd_part_policy(p, r, tau), 0.0)),
    ("mixed_regulariser", claims, "pmd_loss", lambda log_p, old, a, mask, tau:
        (a - 1.1 * tau * (log_p - old).sum(dim=1)).square() / (2 * tau)),
    ("k3", claims, "k3", lambda p, q: claims.k1(p, q)),
    ("two_styles", claims.rpg_losses, "reinforce_urkl_loss", claims.rpg_losses.reinforce_rkl_loss),
    ("two_styles", claims.rpg_losses, "dual_clip_loss", lambda *a, **k: 1.01 * claims.rpg_losses.urkl_loss(*a)),
    ("grpo_bias", claims, "corrected_grpo_penalty", lambda x, old, ref: (x - old).exp().detach()
        * claims.grpo_penalty(x, ref)),
])
def test_a_broken_formula_is_noticed(monkeypatch, name, module, broken, formula):
    r"""Each check can fail: with a formula that is nearly right in its place, the claim no longer holds."""
    monkeypatch.setattr(module, broken, formula)
    assert SMALL[name]()["verdict"] == "does not hold"


def test_conservative_where_reward_is_low(results):
    numbers = results["conservative"]["numbers"]
    assert numbers["excess"] <= 1e-12 and numbers["longer"] == 0
    shares = numbers["share"]["0.1"]
    assert shares["0.01"] < shares["0.1"] < shares["0.3"] < shares["0.9"]
    # (0.260 - 0.01) / (0.9955 - 0.01), with the success probabilities of one exact step at tau 0.1
    assert shares["0.01"] == pytest.approx(0.2537, abs=1e-3)
    # It is not so for ever: at tau 0.1 a p of 1e-6 is rarer still, and the step less careful than at 3e-5.
    share = {p: (claims.one_step(p, 0.1)[0] - p) / (claims.one_step(p, 0.1)[1] - p) for p in (1e-6, 3e-5)}
    assert share[1e-6] > 2 * share[3e-5]


def test_group_steps():
    r"""No winners or only winners: no step. A large group with the share p of winners: the limit of infinitely many."""
    for variant in ("mean", "part"):
        new = claims.group_steps(0.1, 0.1, 8, variant)
        assert new[[0, 8]].tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    mean, part, _ = claims.one_step(0.1, 1.0)
    assert claims.group_steps(0.1, 1.0, 50, "mean")[5].item() == pytest.approx(mean, abs=1e-6)
    assert claims.group_steps(0.1, 1.0, 50, "part")[5].item() == pytest.approx(part, abs=1e-6)


def test_few_rollouts_holds_only_in_part(results):
    cells = {(c["tau"], c["p"], c["group_size"]): c for c in results["few_rollouts"]["numbers"]["cells"]}
    assert cells[0.1, 0.1, 4]["mean"] < cells[0.1, 0.1, 4]["part"]
    assert cells[0.1, 0.5, 16]["mean"] > cells[0.1, 0.5, 16]["part"]  # enough winners: PMD-part saturates


def test_duality_gap_bounds_what_a_better_policy_gains():
    r"""At pi_t the bound is at least the gain of the exact solution; at the solution it is 0."""
    log_old, rewards = claims.responses(claims.random_policy(0)), claims.random_rewards(1)
    best = claims.pmd_part_policy(log_old.exp(), rewards, 0.5).log()

    def value(log_p):
        return claims.objective(log_p, rewards, 0.5, "rkl", log_old).item()

    assert claims.duality_gap(log_old, log_old, rewards, 0.5, 0.0) >= value(best) - value(log_old) > 0.01
    assert claims.duality_gap(best, log_old, rewards, 0.5, 0.0) < 1e-12


def test_intervals():
    for degrees, quantile in ((10, 2.2281), (23, 2.0687), (31, 2.0395)):
        assert claims.t_quantile(degrees) == pytest.approx(quantile, abs=2e-4)
    # 0, 1, ..., 10: mean 5, standard deviation sqrt(11)
    mean, low, high = claims.mean_interval(range(11))
    assert (mean - low, mean, high - mean) == pytest.approx((2.2281, 5, 2.2281), abs=1e-3)
    assert claims.share_interval(10, 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)


def test_training_is_paired_deterministic_and_learns():
    r"""The same samples for every loss: with one step on each sample no ratio leaves 1, so the clip changes nothing."""
    clip, plain = (claims.train(loss, seeds=3, steps=12, stale=1)
                   for loss in (claims.clipped_urkl, claims.rpg_losses.urkl_loss))
    torch.testing.assert_close(clip["reward"], plain["reward"], rtol=1e-12, atol=0)  # the same weights, added otherwise
    more = claims.train(claims.clipped_urkl, seeds=4, steps=12, stale=1)
    torch.testing.assert_close(more["reward"][:, :3], clip["reward"])  # a run does not depend on the others
    learned = claims.train(claims.clipped_urkl, seeds=3, steps=60, stale=4)
    assert (learned["reward"][-1] > learned["reward"][0] + 0.05).all()


def test_drawdown_and_reference():
    r"""Drawdown by its definition, from the curve; a fixed reference with a large beta holds the policy back."""
    runs = {reference: claims.train(claims.clipped_urkl, seeds=2, steps=40, lr=0.1, beta=3.0, reference=reference)
            for reference in (math.inf, None)}
    for run in runs.values():
        curves = run["reward"].T.tolist()
        falls = [max(max(curve[:t + 1]) - curve[t] for t in range(len(curve))) for curve in curves]
        assert run["drawdown"].tolist() == pytest.approx(falls)
    assert (runs[math.inf]["moved"] < runs[None]["moved"]).all()


def test_page_and_pictures(results, tmp_path):
    results = [results[name] for name in SMALL]
    pictures = claims.draw(results, tmp_path)
    text = claims.page(results, pictures)
    assert all((tmp_path / name).stat().st_size > 5000 for name in pictures.values())
    assert all(f"| {i} | {r['claim']} | **{r['verdict']}** |" in text for i, r in enumerate(results, 1))


def test_committed_page_has_every_claim_and_picture(results):
    text = (ROOT / "studies" / "CLAIMS.md").read_text()
    for i, name in enumerate(SMALL, 1):
        assert f"| {i} | {results[name]['claim']} | **" in text
    for picture in ("conservative", "few_rollouts", "grpo_bias", "stale", "reference"):
        assert f"](claims/{picture}.png)" in text and (ROOT / "studies" / "claims" / f"{picture}.png").is_file()


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        claims.main(["--out", str(tmp_path)])
    assert stop.value.code == 2 and "give --out a new folder" in capsys.readouterr().err
