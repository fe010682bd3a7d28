r"""How the graders judge: they compare, and where something differs they say what it is.

A grader (a test in test_ex*.py) is a list of cases. The student's function is run on all of them. If one is wrong:
1. is it a known mistake? Each entry of wrong_answers.py for this exercise is run on the same cases. Where the results
   are the same on all of them, or else on the case that failed, its message is the diagnosis;
2. else the numbers are described: shape, nan, a constant factor or offset, which entries, which tokens of a mask.
What is right is never computed by a copy of the solution: the cases hold numbers worked by hand, brute force in plain
Python, or gradients of the exact objective by enumeration.
"""

import inspect
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent


@dataclass
class Case:
    args: tuple
    wanted: object  # ValueError where the call must raise it
    why: str = ""  # said where this case fails and the mistake is not a known one
    gradient: bool = False  # compare the gradient of the summed output at args[0], not the output
    atol: float = 1e-7  # constants in float32 are fine
    terms: dict = field(default_factory=dict)  # what the gradient is made of, to say which of them is off by what
    constants: tuple = ()  # arguments (by place) into which no gradient may flow


class Raised:
    r"""An exception of the function, as the result of a case."""

    def __init__(self, error):
        self.error = error
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == FOLDER
                  and Path(frame.filename).name != "grading.py"]
        last = frames[-1] if frames else None
        self.where = f" ({Path(last.filename).name}, line {last.lineno}: {last.line})" if last else ""


def fail(message):
    pytest.fail(message, pytrace=False)  # the message alone: a traceback through the grader helps nobody


def copied(args, case):
    r"""Fresh copies of the arguments, those with a gradient asked for as leaves."""
    out = []
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            arg = arg.clone()
            if case.gradient and i == 0 or i in case.constants:
                arg.requires_grad_()
        elif isinstance(arg, list):
            arg = [list(row) if isinstance(row, list) else row for row in arg]
        out.append(arg)
    return out


def run(function, case):
    r"""The result of a case: a value, a gradient, or Raised."""
    args = copied(case.args, case)
    try:
        value = function(*args)
        if not (case.gradient or case.constants):
            for i, (arg, original) in enumerate(zip(args, case.args)):
                if isinstance(arg, (torch.Tensor, list)) and not same(arg, original, 0.0, 0.0):
                    return f"changes argument {i + 1} in place: the caller still needs it. Make a new tensor"
        if case.constants:
            if not (isinstance(value, torch.Tensor) and value.requires_grad):
                return [None] * len(case.constants)
            grads = torch.autograd.grad(value.sum(), [args[i] for i in case.constants], allow_unused=True)
            return [None if grad is None or not grad.any() else "gradient" for grad in grads]
        if not case.gradient:
            return value
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return None
        return torch.autograd.grad(value.sum(), args[0], allow_unused=True)[0]
    except NotImplementedError as error:
        if "missing" in str(error):
            raise
        return Raised(error)
    except Exception as error:  # whatever the student's function may raise is a result
        return Raised(error)


def same(a, b, rtol, atol):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and (a.dtype == torch.bool) == (b.dtype == torch.bool) and torch.allclose(
            a.detach().double(), b.detach().double(), rtol=rtol, atol=atol, equal_nan=True)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(same(x, y, rtol, atol) for x, y in zip(a, b))
    if isinstance(a, Raised) and b is ValueError:
        return isinstance(a.error, ValueError)
    if isinstance(a, Raised) or isinstance(b, Raised):
        return isinstance(a, Raised) and isinstance(b, Raised) and type(a.error) is type(b.error)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= atol + rtol * abs(b)
    return type(a) is type(b) and a == b


def short(x):
    r"""An argument in few characters."""
    if isinstance(x, torch.Tensor):
        if x.numel() > 16:
            return f"<{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}>"
        return str(rounded(x.tolist())).replace("True", "1").replace("False", "0") if x.dtype == torch.bool else \
            str(rounded(x.tolist()))
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."


def rounded(x):
    if isinstance(x, list):
        return [rounded(y) for y in x]
    return float(f"{x:.5g}") if isinstance(x, float) else x


def describe(got, wanted, factors=None):
    r"""What is wrong with a result, in words."""
    if isinstance(got, Raised):
        said = (str(got.error).strip() or "no message").splitlines()[0][:160]
        return f"it raised {type(got.error).__name__}: {said}{got.where}"
    if isinstance(wanted, tuple):
        if not isinstance(got, tuple) or len(got) != len(wanted):
            return f"it should return {len(wanted)} things, got {type(got).__name__}"
        i = next(i for i in range(len(wanted)) if not same(got[i], wanted[i], 1e-5, 1e-9))
        return f"of what it returns, number {i + 1}: {describe(got[i], wanted[i], factors)}"
    if not isinstance(wanted, torch.Tensor) or not isinstance(got, torch.Tensor):
        return f"it gives {short(got)}; right is {short(wanted)}"
    if got.shape != wanted.shape:
        return f"its shape is {list(got.shape)}; right is {list(wanted.shape)}"
    if wanted.dtype == torch.bool:
        if got.dtype != torch.bool:
            return f"its dtype is {got.dtype}; right is torch.bool"
        extra, lost = (got & ~wanted).nonzero().tolist(), (wanted & ~got).nonzero().tolist()
        return "; ".join([f"{at} counts and should not" for at in extra[:3]]
                         + [f"{at} should count" for at in lost[:3]])
    got, wanted = got.detach().double(), wanted.double()
    if not got.isfinite().all() and wanted.isfinite().all():
        at = (~got.isfinite()).nonzero()[0].tolist()
        return f"it is {got[tuple(at)].item()} at {at}; right is {wanted[tuple(at)].item():.6g}"
    nonzero = wanted.abs() > 1e-12
    if nonzero.any() and (got[~nonzero].abs() < 1e-9).all():
        ratios = got[nonzero] / wanted[nonzero]
        ratio = ratios[0].item()
        if (ratios - ratio).abs().max() <= 1e-4 * max(1e-9, abs(ratio)) and nonzero.sum() > 1:
            if abs(ratio + 1) < 1e-4:
                return "the sign is wrong; otherwise it is right"
            if ratio == 0:
                return "it is 0 everywhere: something is detached, masked, or cancels"
            name = next((f", which is {name}" for name, factor in (factors or {}).items()
                         if abs(ratio - factor) <= 1e-4 * abs(factor)), "")
            return f"it is off by the factor {ratio:.6g} everywhere{name}"
    offset = (got - wanted).flatten()
    if len(offset) > 1 and (offset - offset[0]).abs().max() <= 1e-6 * max(1.0, offset[0].abs().item()):
        return f"it is off by the same amount everywhere: {offset[0].item():+.6g}"
    wrong = ((got - wanted).abs() > 1e-9 + 1e-5 * wanted.abs()).nonzero().tolist()
    at = tuple(wrong[0])
    ratio = f", {got[at].item() / wanted[at].item():.4g} times that" if wanted[at] != 0 else ""
    return (f"{len(wrong)} of {wanted.numel()} entries differ; the first, at {list(at)}, is {got[at].item():.6g}; "
            f"right is {wanted[at].item():.6g}{ratio}")


def describe_terms(got, case):
    r"""Of a gradient that is a combination of the case's terms: which has another factor than it should; else ""."""
    if not isinstance(got, torch.Tensor) or got.shape != case.wanted.shape or not got.isfinite().all():
        return ""
    size = sum(term.abs() for term in case.terms.values())  # [N], so that no event outweighs the others
    columns = torch.stack([term / size for term in case.terms.values()], dim=1)  # [N, terms]
    has, needs = (torch.linalg.lstsq(columns, (x / size)[:, None]).solution.squeeze(1) for x in (got, case.wanted))
    if (columns @ has - got / size).abs().max() > 1e-6:
        return ""
    wrong = [f"{name} has the factor {a:.4g} and needs {b:.4g}" for name, a, b in
             zip(case.terms, (has + 0.0).round(decimals=6).tolist(), (needs + 0.0).round(decimals=6).tolist())
             if abs(a - b) > 1e-5]
    return "in the weight of grad log pi_theta, " + ", ".join(wrong)


def check(solution, name, cases, factors=None):
    r"""Fails with a diagnosis unless the function `name` of `solution` is right on every case."""
    from wrong_answers import WRONG

    function = getattr(solution, name, None)
    if function is None:
        fail(f"{name}: missing: there is no function of this name in the file")
    missing = None
    try:
        results = [run(function, case) for case in cases]
    except NotImplementedError as error:
        missing = str(error)
    if missing:  # outside the except, or pytest would show two failures
        fail(f"{name}: {missing}.")
    right = [same(result, case.wanted, 1e-5, case.atol) for result, case in zip(results, cases)]
    if all(right):
        return
    first = right.index(False)
    case, result = cases[first], results[first]
    parameters = list(inspect.signature(function).parameters) + [""] * len(case.args)
    given = ", ".join(f"{parameter}={short(arg)}" for parameter, arg in zip(parameters, case.args))
    what = f"{'the gradient at ' + parameters[0] if case.gradient else 'the result'} of {name}({given})"

    if isinstance(result, str) and result.startswith("changes argument"):
        fail(f"{name} {result}.")
    said = {describe(r, c.wanted, factors) for r, c, ok in zip(results, cases, right) if not ok and not c.constants}
    for chosen in (range(len(cases)), [first]):
        if len(chosen) == 1 and len(said) == 1 and sum(right) < len(cases) - 1 and "everywhere" in next(iter(said)):
            break  # one factor in every case says more than a mistake that happens to agree in one case
        for message, wrong in WRONG.get(name, []):
            known = [run(wrong, cases[i]) for i in chosen]
            if all(same(results[i], k, 1e-5, cases[i].atol) for i, k in zip(chosen, known)) and not isinstance(
                    result, Raised) and not same(known[list(chosen).index(first)], case.wanted, 1e-5, case.atol):
                fail(f"{name}: {message}\n  Seen in {what}.")
    if case.constants:
        into = [parameters[i] for i, grad in zip(case.constants, result) if grad] if isinstance(result, list) else []
        fail(f"{name}: " + (f"gradient flows into {', '.join(into)}, a constant of the update: detach it"
                            if into else describe(result, case.wanted)) + ".")
    for other, ok, r in zip(cases, right, results):  # what a gradient is made of says more than one number
        terms = describe_terms(r, other) if other.terms and not ok else ""
        if terms:
            fail(f"{name}: {terms}.\n  Seen {other.why}.")
    if case.gradient and result is None:
        fail(f"{name}: no gradient reaches {parameters[0]}: something on the way is detached.")
    fail(f"{name}: {case.why + ': ' if case.why else ''}{describe(result, case.wanted, factors)}.\n  Seen in {what}.")
