r"""The walkthrough shows the numbers of the loop, for every objective."""

import re

import pytest
import torch

import walkthrough
from objectives import OBJECTIVES


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_tensor_is_shown_for_every_objective(capsys, objective):
    walkthrough.main(["--objective", objective, "--device", "cpu"])
    text = capsys.readouterr().out
    for name in ("rollout.sequences", "rollout.response_mask", "rollout.log_probs", "rewards", "rollout.advantages",
                 "log_probs", "ratio", "losses", "loss"):
        assert re.search(rf"(?m)^{re.escape(name)}  \[[\d, ]*\] \w+\n    \S", text), name
    assert ("rollout.ref_log_probs  [" in text) == (OBJECTIVES[objective].settings.get("reference") == "initial")
    assert OBJECTIVES[objective].source in text and text.count("gradient norm") == 2 and "nan" not in text
    ratios = [line for line in re.search(r"ratio  \[4, .*\n.*\n((?:    .*\n){4})", text).group(1).split("\n") if line]
    assert all(set(re.findall(r"-?\d+\.\d+", row)) == {"1.0000"} for row in ratios)  # before the first update
    shown = re.search(r"rewards  \[4\].*\n.*\n(.*)\n", text).group(1).split()
    assert {"0.0000", "1.0000"} == set(shown)


def test_the_loss_is_that_of_the_regression(capsys):
    r"""pmd_mean's losses at ratio 1 are A^2 / (2 tau)."""
    walkthrough.main(["--device", "cpu", "--tau", "0.5"])
    text = capsys.readouterr().out
    advantages, losses = (torch.tensor([float(x) for x in re.search(rf"{name}  \[4\].*\n.*\n(.*)\n", text).group(1)
                                        .split()]) for name in ("rollout.advantages", "losses"))
    torch.testing.assert_close(losses, advantages.square(), atol=2e-4, rtol=0)
