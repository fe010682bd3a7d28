r"""studies/claims.py: exact claims hold, sampled ones run at a small size, a broken formula is noticed."""

import json
import math
import re
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
    "few_rollouts": lambda: claims.claim_few_rollouts(),
    "k3": lambda: claims.claim_k3(problems=5),
    "two_styles": lambda: claims.claim_two_styles(problems=1, betas=(0.3,)),
    "grpo_bias": lambda: claims.claim_grpo_bias(problems=4, steps=(0.0, 0.1, 1.0)),
    "clip": lambda: claims.claim_clip(seeds=3, steps=8, stales=(1, 4), lrs=(0.03,)),
    "reference": lambda: claims.claim_reference(seeds=3, steps=8, betas=(1e-4, 1.0), every=4),
    "large_ratios": lambda: claims.claim_large_ratios(problems=12, taus=(0.3, 10.0), ps=(0.1,), group_taus=(0.1,),
                                                      groups=(4,)),
    "convergence": lambda: claims.claim_convergence(problems=2, taus=(0.1,), ps=(0.001, 0.5), binary_taus=(0.3,)),
    "styles_differ": lambda: claims.claim_styles_differ(problems=12, steps=(0.0, 1.0)),
    "kl_target": lambda: claims.claim_kl_target(seeds=3, steps=16, betas=(1.0,), targets=(1e-5, 1e5)),
    "stale_data": claims.claim_stale_data,
}


@pytest.fixture(scope="module")
def results():
    return {name: claim() for name, claim in SMALL.items()}


@pytest.mark.parametrize("name", ["lambert_w", "mixed_regulariser", "k3", "two_styles", "grpo_bias", "large_ratios",
                                  "convergence", "styles_differ"])
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
    ("two_styles", claims, "algorithm_1_as_printed", claims.rpg_losses.dual_clip_loss),
    ("two_styles", claims, "no_stop_gradient", lambda *a, kl: getattr(claims.rpg_losses, f"reinforce_{kl}_loss")(*a)),
    ("large_ratios", claims, "pmd_mean_policy", lambda p, r, tau: (claims.pmd_part_policy(p, r, tau / 1.01), 0.0)),
    ("convergence", claims, "pmd_mean_policy", lambda p, r, tau: (p, 0.0)),
    ("styles_differ", claims, "algorithm_1_as_printed", claims.rpg_losses.dual_clip_loss),
    ("styles_differ", claims, "clamped_weight", lambda *a: claims.rpg_losses.reinforce_dual_clip_loss(*a, c=10.0)),
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
    # The measure that speaks against the claim stands in the verdict, with its count.
    smaller, _, larger = results["few_rollouts"]["numbers"]["counts"]["all"]["relative "]
    assert larger > 5 * smaller
    assert f"(iii) is against it, {smaller} cells for and {larger} against" in results["few_rollouts"]["verdict"]


def test_near_misses():
    r"""One event by hand: w = 2, A = 1 and A = -1, with the gradients that the near-misses have."""
    old = torch.tensor([0.2], dtype=torch.float64).log()
    x = torch.tensor([0.4], dtype=torch.float64).log()
    good, bad = torch.ones(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)

    def slope(loss, a, *options, **keys):
        return claims.gradient(lambda z: loss(z, old, a, *options, **keys).sum(), x).item()

    # -(w Ahat)' with Ahat = A - beta log w differentiated: off by beta w = 0.2 from the loss that detaches it
    right = slope(claims.rpg_losses.dual_clip_loss, good, 0.1, **claims.WIDE)
    assert slope(claims.algorithm_1_as_printed, good, 0.1, **claims.WIDE) == pytest.approx(right + 0.2)
    # Clipped at 1.28, only Ahat is left: -1.28 (-beta)
    assert slope(claims.algorithm_1_as_printed, good, 0.1) == pytest.approx(0.128)
    # -(w log pi)' = -w log pi - w
    assert slope(claims.no_stop_gradient, good, 0.0) == pytest.approx(-2 * math.log(0.4) - 2)
    assert slope(claims.clamped_weight, good, 0.0) == pytest.approx(-1.28)
    assert slope(claims.clamped_weight, bad, 0.0) == pytest.approx(2)
    assert slope(claims.ppo_clip, good, 0.0) == 0 and slope(claims.ppo_clip, bad, 0.0) == pytest.approx(2)


def test_large_ratios_of_two_outcomes(results):
    r"""Reward 1 with probability 0.1 at tau 0.1: 0.746 / 0.1 and 0.9996 / 0.1. At the same gain the ratios are one."""
    cell = next(c for c in results["large_ratios"]["numbers"]["cells"] if c["group_size"] is None)
    assert (cell["mean"], cell["part"]) == pytest.approx((7.46, 9.996), abs=5e-3)
    old, win = torch.tensor([0.1, 0.9], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    mean = claims.pmd_mean_policy(old, win, 0.1)[0]
    assert claims.same_gain(old, win, 0.1, mean[0]).tolist() == pytest.approx(mean.tolist(), abs=1e-9)


def test_rounds_of_pmd_part():
    r"""PMD-part adds 1 / tau to the log-odds: from 0.01 to where 1 % of the gap is left in ceil(0.3 * 9.2) rounds."""
    start, win = torch.tensor([0.01, 0.99], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    gaps = claims.rounds(start, win, 0.3, "part")
    left = 0.99 * 0.01
    assert len(gaps) - 1 == math.ceil(0.3 * (math.log((1 - left) / left) - math.log(0.01 / 0.99)))
    assert gaps[1] == pytest.approx(1 / (1 + 0.01 / 0.99 * math.exp(1 / 0.3)))


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


def test_kl_target_of_the_reference():
    r"""Always over the target: a new reference at every step. Never: the initial one. Each run has its own trigger."""
    def run(seeds=2, **options):
        return claims.train(claims.clipped_urkl, seeds=seeds, steps=24, lr=0.1, beta=1.0, **options)

    torch.testing.assert_close(run(reference=math.inf, ref_kl=-1.0)["reward"], run(reference=1)["reward"])
    never = run(reference=math.inf, ref_kl=1e9)
    assert not never["updates"].any()
    torch.testing.assert_close(never["reward"], run(reference=math.inf)["reward"])
    counts = [run(reference=math.inf, ref_kl=target)["updates"].sum().item() for target in (1e-4, 1e-2)]
    assert 24 * 2 > counts[0] > counts[1] > 0
    three, two = (run(seeds, reference=math.inf, ref_kl=0.003) for seeds in (3, 2))
    torch.testing.assert_close(three["updates"][:, :2], two["updates"])
    assert (three["updates"][:, 0] != three["updates"][:, 1]).any()
    assert run(reference=8)["updates"][:, 0].nonzero().flatten().tolist() == [8, 16]


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
    for picture in ("conservative", "few_rollouts", "grpo_bias", "stale", "reference", "ratios", "rounds", "styles",
                    "kl_target"):
        assert f"](claims/{picture}.png)" in text and (ROOT / "studies" / "claims" / f"{picture}.png").is_file()
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0  # every formula is closed


def test_committed_page_and_notebook_4_agree():
    r"""How often the weight makes GRPO's KL gradient noisier: the counts in the notebook are the page's shares."""
    cells = json.loads((ROOT / "tutorials" / "04_kl_estimators.ipynb").read_text())["cells"]
    text = " ".join("".join("".join(cell["source"]) for cell in cells).split())
    counts = re.search(r"noisier one in ([\d, and]+) of the 100", text)[1]
    page = (ROOT / "studies" / "CLAIMS.md").read_text().split("## 7.")[1].split("## 8.")[0]
    shares = re.findall(r"^\| [\d.]+ \|.*\| (0\.\d\d) \[[\d., ]+\] \|$", page, re.M)
    assert [int(n) for n in re.findall(r"\d+", counts)] == [round(100 * float(share)) for share in shares]
    assert len(shares) == 5


def test_other_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        claims.main(["--out", str(tmp_path)])
    assert stop.value.code == 2 and "give --out a new folder" in capsys.readouterr().err
