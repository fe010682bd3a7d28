r"""Apple's MPS has no float64. Here the CPU is taken for a device without it, and every use of float64 there fails.

Nothing here shows that a model runs on MPS: no such device was at hand.
"""

import dataclasses
import types

import pytest
import torch
from test_rollout import prompts_for
from test_train import run
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rollout as sampling
import train as program
from objectives import OBJECTIVES
from plumbing.model import device_of
from rollout import Rollout, for_draws, inverse_cdf, sample_rollouts, uniforms

F64 = torch.float64


# --- the draw without float64 ---

def whole(u):
    return (torch.tensor(u, dtype=F64) * 2**40).long()


def test_whole_numbers_by_hand():
    log_p = torch.tensor([[0.2, 0.5, 0.3, 0.0]]).log().expand(5, 4)
    assert inverse_cdf(log_p, whole([0.0, 0.1, 0.2001, 0.95, 1 - 2**-53])).tolist() == [0, 0, 1, 2, 2]
    assert inverse_cdf(torch.tensor([[0.0, 1.0]]).log(), whole([0.0])).tolist() == [1]


@pytest.mark.parametrize("V", [7, 1024, 151_936])
def test_whole_numbers_draw_what_float64_draws(V):
    generator = torch.Generator().manual_seed(V)
    logits = 4 * torch.randn(24, V, generator=generator)
    logits[:, ::3] = -torch.inf  # of probability 0, the last ones too
    logits[:, -2:] = -torch.inf
    log_p = logits.log_softmax(dim=-1)
    u = torch.rand(24, generator=generator, dtype=F64)
    u[:4] = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 1 - 2.0**-25], dtype=F64)
    cumulative = log_p.exp().double().cumsum(dim=-1)
    for shift in (0.0, 0.3):  # a total that is not 1, by far more than rounding
        drawn = inverse_cdf(log_p + shift, (u * 2**40).long())
        assert (log_p.gather(1, drawn[:, None]) > -torch.inf).all()
        # The exact place of u lies in the token's interval, to 2^-40 for u and for each token before it.
        upper = (cumulative.gather(1, drawn[:, None]) / cumulative[:, -1:]).squeeze(1)
        lower = upper - log_p.exp().double().gather(1, drawn[:, None]).squeeze(1)
        slack = (V + 2) * 2.0**-40
        assert (lower - slack <= u).all() and (u < upper + slack).all()
    torch.testing.assert_close(inverse_cdf(log_p, u)[4:], inverse_cdf(log_p, (u * 2**40).long())[4:], rtol=0, atol=0)


def test_the_same_seed_samples_the_same_without_float64(tiny, monkeypatch):
    prompts = prompts_for(tiny[1])
    with_float64 = sample_rollouts(*tiny, prompts, 8, 40, 1.3, seed=3)
    monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", ("cpu",))
    assert for_draws(uniforms(prompts, 1, 2, 0), torch.device("cpu")).dtype == torch.long
    without = sample_rollouts(*tiny, prompts, 8, 40, 1.3, seed=3)
    assert torch.equal(with_float64.sequences, without.sequences)
    assert torch.equal(with_float64.log_probs, without.log_probs)


# --- no float64 on the device ---

class NoConversion(TorchDispatchMode):
    r"""No operation has float64 beside another precision: so no tensor of the model becomes float64, or meets one."""

    on_host = False  # True while numbers that never were on the device are converted

    def __torch_dispatch__(self, function, classes, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        kinds = {x.dtype for x in tree_leaves((arguments, keywords, result)) if isinstance(x, torch.Tensor)}
        assert self.on_host or F64 not in kinds or len(kinds) == 1, f"float64 on the device: {function}"
        return result


class NoTransfer(TorchFunctionMode):
    r"""No float64 is made on a device that is named, nor moved to one."""

    def __torch_function__(self, function, classes, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        named = function is torch.Tensor.to or (keywords or {}).get("device") is not None
        assert not (named and isinstance(result, torch.Tensor) and result.dtype == F64), f"float64 moved: {function}"
        return result


@pytest.fixture
def without_float64(monkeypatch):
    r"""What is entered for code to fail at float64 on the device. On the host are: uniform numbers, advantages."""
    watched, on_host = NoConversion(), []
    monkeypatch.setattr(sampling, "WITHOUT_FLOAT64", ("cpu",))

    def hosted(function):
        def call(*arguments):
            watched.on_host = True
            try:
                return function(*arguments)
            finally:
                watched.on_host = False
        return call

    def to(self, device, real=Rollout.to):
        moved = real(self, device)
        if device == "cpu":
            on_host.append(moved)
        return moved

    def checked(advantages):
        def call(rewards, rollout, settings):
            assert any(rollout is moved for moved in on_host)
            return hosted(advantages)(rewards, rollout, settings)
        return call

    monkeypatch.setattr(sampling, "for_draws", hosted(for_draws))
    monkeypatch.setattr(Rollout, "to", to)
    for name, objective in OBJECTIVES.items():
        monkeypatch.setitem(OBJECTIVES, name, dataclasses.replace(objective, advantages=checked(objective.advantages)))
    return watched


@pytest.mark.parametrize("flags", [
    ["--objective", "pmd_mean", "--old-log-probs", "recomputed"],
    ["--objective", "pmd_part", "--decode", "static"],
    ["--objective", "grpo", "--reference", "initial", "--beta", "0.01", "--gradient-checkpointing"],
    ["--objective", "rpg_reinforce_clip_urkl"],
    ["--objective", "gspo", "--dtype", "bfloat16"],
    ["--objective", "reinforce_pp"],
])
def test_a_step_has_no_float64_on_the_device(tmp_path, without_float64, monkeypatch, flags):
    import scoring

    monkeypatch.setattr(scoring, "BLOCK_NUMBERS", 2**14)  # the vocabulary in blocks
    with without_float64, NoTransfer():
        rows = run(*flags, "--steps", 1, "--eval-every", 1, "--eval-size", 4, "--save-every", 0, "--prompts-per-step",
                   2, "--out", tmp_path / "run")
    assert rows[1]["grad_norm"] > 0


@pytest.mark.parametrize("place, broken", [
    ("sampling", lambda model, u: inverse_cdf(torch.zeros(1, 4).log_softmax(-1), u)),  # u is float64
    ("scoring", lambda model, u: model.lm_head.weight.double()),
    ("a sum", lambda model, u: model.lm_head.weight.sum(dtype=F64)),
    ("made there", lambda model, u: torch.zeros(2, dtype=F64, device=model.device)),
    ("moved there", lambda model, u: u.to(model.device)),
])
def test_float64_on_the_device_is_noticed(tiny, without_float64, place, broken):
    u = torch.tensor([0.5], dtype=F64)
    with pytest.raises(AssertionError, match="float64"), without_float64, NoTransfer():
        broken(tiny[0], u)


# --- --device auto ---

@pytest.mark.parametrize("preset, cuda, processes, expected", [
    ("gsm8k", False, 1, "mps"), ("tiny", False, 1, "cpu"), ("gsm8k", True, 1, "cuda:0"), ("gsm8k", False, 2, "cpu"),
])
def test_auto_takes_mps_for_the_gsm8k_preset_only(monkeypatch, preset, cuda, processes, expected):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert device_of(program.parse_settings(["--preset", preset])) == torch.device(expected)


def test_without_mps_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(program.parse_settings(["--preset", "gsm8k"])) == torch.device("cpu")


def test_several_processes_on_mps_are_refused(monkeypatch, capsys):
    settings = program.parse_settings(["--preset", "tiny"])
    settings.device = "mps"
    monkeypatch.setattr(torch, "empty", lambda *size, device: types.SimpleNamespace(device=torch.device(device)))
    assert device_of(settings) == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        device_of(settings)
    assert stop.value.code == 2 and "--device mps" in capsys.readouterr().err
