r"""Every public function of the concept files runs when pasted alone under `import torch`."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# What belongs to a file's demonstration and may use the rest of the file.
DEMOS = {
    "aggregation": {"main"},
    "baselines": {"main"},
    "importance": {"main", "moments"},
    "kl_estimators": {"main", "expected_gradient", "recognise"},
    "pmd_mean": {"main", "one_step", "baseline_errors"},
    "pmd_variants": {"main", "regression_policy", "k25_policy", "by_prefix", "minimiser", "expected_losses",
                     "recognise", "optima"},
    "rewards": {"main"},
    "rpg_losses": {"main"},
}


def functions(name):
    r"""{function: its source} of the file's top level, or nothing where the file is not there yet."""
    path = ROOT / f"{name}.py"
    if not path.is_file():
        return {}
    source = path.read_text()
    return {node.name: ast.get_source_segment(source, node) for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and node.name not in DEMOS[name]}


def sample(function, parameter):
    r"""An argument for a parameter, by its name: 4 responses in groups of 2, up to 3 tokens."""
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    one_step = function.endswith("_policy")  # these take probabilities and rewards of K outcomes
    values = {
        "log_probs": -torch.rand(4, 3, generator=g) - 0.1, "log_p": -torch.rand(4, 3, generator=g) - 0.1,
        "old_log_probs": -torch.rand(4, 3, generator=g) - 0.2, "ref_log_probs": -torch.rand(4, 3, generator=g) - 0.3,
        "log_q": -torch.rand(4, 3, generator=g) - 0.3, "losses": torch.rand(4, 3, generator=g),
        "advantages": torch.tensor([1.0, -1, 0.5, -0.5]), "rewards": torch.tensor([1.0, 0, 0.7, 0.2]),
        "correct": torch.tensor([1, 0, 1, 1]), "lengths": torch.tensor([3, 1, 2, 3]), "response_mask": mask,
        "mask": mask, "old_probs": torch.full((4,), 0.25), "group_size": 2, "beta": 0.3, "tau": 0.5,
        "mode": "token-mean", "max_new_tokens": 4, "buffer": 2,
        "values": torch.tensor([0.6, 0.6, 0.5, 0.5]), "ref_rewards": torch.tensor([1.0, 0, 0, 0]), "lower": 0,
        "upper": 1,
        "sampler_log_probs": -torch.rand(4, 3, generator=g) - 0.4, "threshold": 1.5,
        "weights": torch.tensor([0.5, 1.5, 1, 1]), "logits": torch.rand(4, 3, generator=g), "top_p": 0.7,
    }
    return values["rewards"].double() if one_step and parameter == "rewards" else values[parameter]


CASES = [(name, function) for name in DEMOS for function in functions(name)]


@pytest.mark.parametrize("name, function", CASES)
def test_runs_when_pasted_alone(name, function):
    pasted = {}
    exec("import torch\n\n\n" + functions(name)[function], pasted)  # nothing of the file, nothing of the test
    original = getattr(importlib.import_module(name), function)
    arguments = {p.name: sample(function, p.name) for p in inspect.signature(original).parameters.values()
                 if p.default is p.empty or p.name == "ref_log_probs"}
    got, wanted = (f(**arguments) for f in (pasted[function], original))
    got, wanted = ((x if isinstance(x, tuple) else (x,)) for x in (got, wanted))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted):
        assert torch.equal(a, b) and (a.isfinite().all() or function == "top_p_logits")  # -inf outside the nucleus


def test_the_losses_of_the_contract_are_among_them():
    kls = ("fkl", "rkl", "ufkl", "urkl")
    rpg = {f"{style}{kl}_loss" for style in ("", "reinforce_") for kl in kls}
    assert rpg | {"dual_clip_loss", "reinforce_dual_clip_loss"} == set(functions("rpg_losses"))
    assert {"reinforce_loss", "grpo_loss", "gspo_loss"} <= set(functions("baselines"))
    assert {"grpo_advantages", "rloo_advantages", "reinforce_pp_advantages"} <= set(functions("baselines"))
    assert {"mixed_groups", "bounded_groups", "overlong_penalty", "length_reward"} == set(functions("rewards"))
    assert {"k1", "k2", "k3", "grpo_penalty", "corrected_grpo_penalty"} == set(functions("kl_estimators"))


@pytest.mark.parametrize("name", DEMOS)
def test_only_torch_at_the_top(name):
    if not (ROOT / f"{name}.py").is_file():
        pytest.skip(f"{name}.py is not there")
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert imports == ["import torch"]


@pytest.mark.parametrize("name, function", CASES)
def test_docstrings_are_raw_and_clean(name, function):
    r"""Pitfall 25: in a docstring that is not raw, \b and \t are control characters."""
    node = ast.parse(functions(name)[function]).body[0]
    assert ast.get_source_segment(functions(name)[function], node.body[0]).startswith('r"""')
    assert ast.get_docstring(node).replace("\n", "").isprintable()
