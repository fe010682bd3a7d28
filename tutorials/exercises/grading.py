r"""How the graders judge: they compare, and where something differs they say what it is, if they know.

A grader (a test in test_ex*.py) is a list of cases, run on the student's function. `diagnose` then looks, in this
order: 1. arguments changed in place, types, shapes and dtypes: facts;
2. known mistakes (wrong_answers.py): named only where they give the same results in EVERY case, and where more than one
   True, False or None speaks for it; then exceptions;
3. facts that hold in every case that fails: the gradient right and the value not, the reverse, a sign, a factor, an
   offset, an argument for a factor, the right entries in other places, the terms that a gradient is made of, the
   events where it goes wrong, a property that the result lacks, rows that are mixed, a result that hangs on the order,
   arguments that make no difference, the argument or the kind of text with which it is wrong;
4. else the first case that fails, and why that case is there: no cause.
Cases marked `extra` (constants of the update, nan in the padding, half precision) are looked at when the rest is right:
most mistakes in a formula come with one of those, which is not their cause.

What is right is never computed by a copy of the solution: the cases hold numbers worked by hand, brute force in plain
Python, or gradients of the exact objective by enumeration.
"""

import inspect
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
NOT_COMPARED = object()


@dataclass
class Case:
    args: tuple
    wanted: object = NOT_COMPARED  # the value; ValueError where the call must raise it
    why: str = ""  # why this case is here; of an extra case: what is wrong where it fails
    gradient: object = None  # of the summed value, at args[at]
    at: int = 0
    atol: float = 1e-7  # constants in float32 are fine
    terms: dict = field(default_factory=dict)  # {name: tensor}, what the gradient (or else the value) is made of
    factors: dict = field(default_factory=dict)  # {what it means: factor}, mistakes that are one factor
    events: list = field(default_factory=list)  # a name for each entry of the gradient (or else the value)
    properties: dict = field(default_factory=dict)  # {what is wrong: value, *args -> bool, True where it is so}
    unit: int = 0  # so many rows do not depend on the others: with them alone the result is the same
    constants: tuple = ()  # arguments (by place) into which no gradient may flow
    extra: bool = False


@dataclass
class Result:
    value: object = None
    gradient: object = None
    leaks: tuple = ()  # places of constants with a gradient
    error: Exception = None
    changes: int = None  # place of an argument changed in place


def fail(message):
    pytest.fail(message, pytrace=False)  # the message alone: a traceback through the grader helps nobody


def run(function, case):
    r"""The function on fresh copies of the arguments of a case."""
    args, leaves = [], set(case.constants) | ({case.at} if case.gradient is not None else set())
    for i, arg in enumerate(case.args):
        if isinstance(arg, torch.Tensor):
            arg = arg.clone().requires_grad_() if i in leaves else arg.clone()
        elif isinstance(arg, list):
            arg = [list(row) if isinstance(row, list) else row for row in arg]
        args.append(arg)
    result = Result()
    try:
        result.value = value = function(*args)
        for i, (arg, original) in enumerate(zip(args, case.args)):
            if isinstance(arg, (torch.Tensor, list)) and i not in leaves and not same(arg, original, 0.0, 0.0):
                result.changes = i
        if leaves and isinstance(value, torch.Tensor) and value.requires_grad:
            places = sorted(leaves)
            grads = torch.autograd.grad(value.sum(), [args[i] for i in places], allow_unused=True)
            grads = {i: None if grad is None else grad.detach() for i, grad in zip(places, grads)}
            result.gradient = grads.get(case.at)
            result.leaks = tuple(i for i in case.constants if grads[i] is not None and grads[i].any())
    except NotImplementedError:
        raise
    except Exception as error:  # whatever the student's function may raise is a result
        result.error = error
    return result


def kind(x):
    r"""What sort of thing it is, in words."""
    if isinstance(x, torch.Tensor):
        return "a bool tensor" if x.dtype == torch.bool else \
            "a tensor of floats" if x.is_floating_point() else "a tensor of integers"
    return {type(None): "None", bool: "a bool", int: "a number", float: "a number", str: "a text"}.get(
        type(x), f"a {type(x).__name__}")


def same(a, b, rtol, atol):
    if kind(a) != kind(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.detach().double(), b.detach().double(), rtol=rtol, atol=atol,
                                                     equal_nan=True)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y, rtol, atol) for x, y in zip(a, b))
    return abs(a - b) <= atol + rtol * abs(b) if kind(a) == "a number" else a == b


def zeros_for_none(grad, like):
    return torch.zeros_like(like) if grad is None else grad


def value_right(result, case):
    if case.wanted is NOT_COMPARED:
        return True
    if case.wanted is ValueError or result.error:
        return case.wanted is ValueError and isinstance(result.error, ValueError)
    return same(result.value, case.wanted, 1e-5, case.atol)


def gradient_right(result, case):
    return case.gradient is None or not result.error and same(
        zeros_for_none(result.gradient, case.gradient), case.gradient, 1e-5, case.atol)


def right(result, case):
    return value_right(result, case) and gradient_right(result, case) and not result.leaks and result.changes is None


def agree(a, b, case):
    r"""Do two functions give the same in a case?"""
    if a.error or b.error:
        return type(a.error) is type(b.error)
    return (case.wanted is NOT_COMPARED or same(a.value, b.value, 1e-5, case.atol)) and (
        case.gradient is None or same(zeros_for_none(a.gradient, case.gradient), zeros_for_none(
            b.gradient, case.gradient), 1e-5, case.atol))


def short(x):
    r"""An argument in few characters."""
    if isinstance(x, torch.Tensor):
        if x.numel() > 16:
            return f"<{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}>"
        text = str(rounded(x.tolist()))
        return text.replace("True", "1").replace("False", "0") if x.dtype == torch.bool else text
    if isinstance(x, (tuple, list)) and any(isinstance(y, torch.Tensor) for y in x):
        return "(" + ", ".join(map(short, x)) + ")"
    text = x.__name__ if callable(x) else repr(rounded(x))
    return text if len(text) <= 60 else text[:57] + "..."


def rounded(x):
    if isinstance(x, list):
        return [rounded(y) for y in x]
    return float(f"{x:.7g}") if isinstance(x, float) else x


def where(error):
    r"""The line of the student's file that raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == FOLDER
              and Path(frame.filename).name != "grading.py"]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


# --- facts about one thing: a value, or a gradient ---

def wrong_type(got, wanted):
    r"""What is wrong with its type, shape or dtype; "" where these are right."""
    if isinstance(wanted, tuple) and isinstance(got, tuple) and len(got) == len(wanted):
        said = [(i, wrong_type(a, b)) for i, (a, b) in enumerate(zip(got, wanted), 1)]
        return next((f"of what it returns, number {i}: {text}" for i, text in said if text), "")
    if isinstance(wanted, tuple):
        return f"it should return {len(wanted)} things, got {kind(got)}" + (
            f" of {len(got)}" if isinstance(got, (tuple, list)) else "")
    if isinstance(wanted, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"it returns {kind(got)}; right is {kind(wanted)} of shape {list(wanted.shape)}"
        if got.shape != wanted.shape:
            return f"its shape is {list(got.shape)}; right is {list(wanted.shape)}"
    if kind(got) != kind(wanted) and wanted is not None and got is not None:
        return f"it returns {kind(got)}" + (f" ({got.dtype})" if isinstance(got, torch.Tensor) else "") + \
            f"; right is {kind(wanted)}"
    return ""


def difference(got, wanted):
    r"""How one thing differs from what it should be, in numbers: no cause."""
    if isinstance(wanted, tuple):
        i = next(i for i in range(len(wanted)) if not same(got[i], wanted[i], 1e-5, 1e-7))
        return f"of what it returns, number {i + 1}: {difference(got[i], wanted[i])}"
    if not isinstance(wanted, torch.Tensor):
        return f"it gives {short(got)}; right is {short(wanted)}"
    if wanted.dtype == torch.bool:
        extra, lost = (got & ~wanted).nonzero().tolist(), (wanted & ~got).nonzero().tolist()
        return "; ".join([f"{at} is True and should not be" for at in extra[:3]]
                         + [f"{at} should be True" for at in lost[:3]])
    got, wanted = got.detach().double(), wanted.double()
    wrong = ~torch.isclose(got, wanted, rtol=1e-5, atol=1e-7)
    at = tuple(wrong.nonzero()[0].tolist())
    many = f"{int(wrong.sum())} of {wanted.numel()} entries differ; the first, at {list(at)}," if wanted.dim() else "it"
    return f"{many} is {got[at].item():.6g}; right is {wanted[at].item():.6g}"


# --- facts about all cases that fail ---

INSTEAD = {"the logarithm of what is right": torch.log, "the exp of what is right": torch.exp, "one over what is right":
           torch.reciprocal, "the square of what is right": torch.square, "the root of what is right": torch.sqrt,
           "one minus what is right": lambda x: 1 - x, "the absolute value of what is right": torch.abs}


def numbers(pairs):
    r"""All (got, wanted) as two vectors of float64; None where something is no finite number."""
    flat = [(x, y) for got, wanted in pairs for x, y in
            (zip(got, wanted) if isinstance(wanted, tuple) else [(got, wanted)])]
    if any(kind(y) not in ("a number", "a tensor of floats", "a tensor of integers") for _, y in flat):
        return None
    got, wanted = (torch.cat([torch.as_tensor(pair[i], dtype=torch.float64).detach().flatten() for pair in flat])
                   for i in (0, 1))
    return (got, wanted) if got.isfinite().all() else None


def one_factor(pairs, cases):
    r"""A sign, a factor, an offset or a function that is the same in every case; else ""."""
    if all(isinstance(wanted, tuple) and same(got[::-1], wanted, 1e-5, 1e-7) for got, wanted in pairs):
        return "what it returns is right, but in the wrong order"
    if all(kind(wanted) == "a bool tensor" and torch.equal(got, ~wanted) for got, wanted in pairs):
        return "it is the opposite: True where it should be False"
    vectors = numbers(pairs)
    if vectors is None:
        return ""
    got, wanted = vectors
    some = wanted.abs() > 1e-9
    if (got[~some].abs() < 1e-7).all() and some.any():
        named = []
        for what in cases[0].factors:
            if all(what in case.factors and torch.allclose(a, case.factors[what] * b, rtol=1e-4, atol=1e-7)
                   for case, pair in zip(cases, pairs) for a, b in [numbers([pair])]):
                named.append(what)
        if len(named) == 1 and len(got) > 1:
            return named[0]
        ratios = got[some] / wanted[some]
        ratio = ratios[0].item()
        if len(ratios) > 1 and (ratios - ratio).abs().max() <= 1e-4 * max(1e-9, abs(ratio)):
            return "the sign is wrong; otherwise it is right" if abs(ratio + 1) < 1e-4 else "it is 0 everywhere" \
                if ratio == 0 else f"it is off by the factor {ratio:.6g}, the same in every case"
    for what, f in INSTEAD.items():
        if len(got) > 2 and torch.allclose(got, f(wanted), rtol=1e-5, atol=1e-9):
            return f"it is {what}"
    offset = got - wanted
    if len(offset) > 1 and (offset - offset[0]).abs().max() <= 1e-6 * max(1.0, offset[0].abs().item()):
        return f"it is off by the same amount everywhere: {offset[0].item():+.6g}"
    return ""


def argument_factor(pairs, cases, parameters):
    r"""A factor that is not the same everywhere, but is made of one argument (or the number of rows) everywhere."""
    vectors = [numbers([pair]) for pair in pairs]
    if None in vectors or any(isinstance(wanted, tuple) for _, wanted in pairs):
        return ""
    some = [wanted.abs() > 1e-9 for _, wanted in vectors]
    if any((got[~x].abs() > 1e-7).any() for (got, _), x in zip(vectors, some)):
        return ""
    ratio = torch.cat([got[x] / wanted[x] for (got, wanted), x in zip(vectors, some)])
    if len(ratio) < 3 or ratio.max() - ratio.min() < 1e-4 or (ratio.abs() < 1e-9).any():
        return ""

    def candidates(case, size):
        first, rows = next(((name, len(x)) for name, x in zip(parameters, case.args)
                            if isinstance(x, torch.Tensor) and x.dim()), ("", 0))
        if rows:
            yield f"len({first})", rows
        if rows > 1:
            yield f"len({first})/(len({first}) - 1)", rows / (rows - 1)
        for name, x in zip(parameters, case.args):
            if kind(x) == "a number":
                yield name, x
            elif kind(x) == "a tensor of floats" and x.numel() == size:
                yield name, x.double().flatten()
                yield f"exp({name})", x.double().flatten().exp()

    found = {}
    for case, x in zip(cases, some):
        for name, y in candidates(case, len(x)):
            found.setdefault(name, []).append((torch.zeros(len(x), dtype=torch.float64) + y)[x])
    fit = [said for name, values in found.items() if len(values) == len(cases) for power, said in (
        (1, name), (-1, f"1/{name}"), (2, f"{name}^2"), (-2, f"1/{name}^2"))
        if torch.allclose(ratio, torch.cat(values)**power, rtol=1e-4)]
    return f"it is off by the factor {fit[0]}" if len(fit) == 1 else ""


def group_factor(pairs, cases):
    r"""One factor for each group, in every case; else ""."""
    many = 0
    for pair, case in zip(pairs, cases):
        vectors = numbers([pair])
        if case.unit < 2 or vectors is None or len(vectors[1]) % case.unit:
            return ""
        for got, wanted in zip(*(x.split(case.unit) for x in vectors)):
            some = wanted.abs() > 1e-9
            factors = got[some] / wanted[some]
            if (got[~some].abs() > 1e-7).any() or len(factors) and not torch.allclose(
                    factors, factors[0].expand_as(factors), rtol=1e-4):
                return ""
            many += len(factors) > 1
    return "it is right but for a factor, one for each group, which differs from group to group: look at what it is " \
        "divided by" if many > 2 else ""


def rearranged(pairs):
    r"""The right entries in other places, or the same number everywhere; else ""."""
    if all(isinstance(wanted, tuple) for _, wanted in pairs):
        wrong = [[i for i, two in enumerate(zip(*pair)) if not same(*two, 1e-5, 1e-7)] for pair in pairs]
        i = wrong[0][0]
        said = rearranged([(got[i], wanted[i]) for got, wanted in pairs]) if all(x == [i] for x in wrong) else ""
        return said and f"of what it returns, number {i + 1}: {said}"
    if not all(isinstance(wanted, torch.Tensor) and wanted.dim() for _, wanted in pairs):
        return ""
    pairs = [(got.detach().double(), wanted.double()) for got, wanted in pairs]
    if max(len(wanted.unique()) for _, wanted in pairs) < 3:  # of two numbers much is in the right place by chance
        return ""
    if len(torch.cat([got.flatten() for got, _ in pairs]).unique()) == 1:
        return f"it gives {pairs[0][0].flatten()[0].item():.6g} everywhere"
    for dim in range(min(wanted.dim() for _, wanted in pairs)):
        def every(f):
            return all(torch.allclose(*f(got, wanted, wanted.shape[dim] - 1), rtol=1e-5, atol=1e-7)
                       for got, wanted in pairs)

        if every(lambda got, wanted, last: (got, wanted.flip(dim))):
            return f"it is right, but in reverse order along dim {dim}"
        if all(wanted.shape[dim] > 2 for _, wanted in pairs):
            if every(lambda got, wanted, last: (got.narrow(dim, 1, last), wanted.narrow(dim, 0, last))):
                return f"it is right, but one place too late along dim {dim}"
            if every(lambda got, wanted, last: (got.narrow(dim, 0, last), wanted.narrow(dim, 1, last))):
                return f"it is right, but one place too early along dim {dim}"
        if every(lambda got, wanted, last: (got.sort(dim)[0], wanted.sort(dim)[0])):
            return f"it has the right entries in another order along dim {dim}"
    return ""


def one_step(pairs):
    r"""Whole numbers that are off by the same step wherever they are wrong; else ""."""
    if not all(kind(wanted) == "a tensor of integers" for _, wanted in pairs):
        return ""
    steps = torch.cat([(got - wanted)[got != wanted] for got, wanted in pairs])
    return f"where it is wrong it is off by {steps[0]:+d}" if len(steps) > 2 and len(steps.unique()) == 1 else ""


def of_terms(got, wanted, case):
    r"""Which of the case's terms has another factor than it should; "" where `got` is no combination of them."""
    terms = {name: term.double().flatten() for name, term in case.terms.items()}
    if not terms or not isinstance(got, torch.Tensor) or got.shape != wanted.shape or not got.isfinite().all():
        return ""
    columns = torch.stack(list(terms.values()), dim=1)  # [entries, terms]
    used = columns.abs().amax(dim=1) > 0
    size = columns[used].abs().sum(dim=1, keepdim=True)  # so that no entry outweighs the others
    columns, (has, needs) = columns[used] / size, [x.double().flatten()[used, None] / size for x in (got, wanted)]
    different = len(torch.unique(columns.round(decimals=9), dim=0))  # anything fits a few equations
    if (got.flatten()[~used] != 0).any() or torch.linalg.matrix_rank(columns, rtol=1e-9) < len(terms) or \
            different < len(terms) + 3:
        return ""
    factors = [torch.linalg.lstsq(columns, x).solution.squeeze(1) for x in (has, needs)]
    if (columns @ factors[0][:, None] - has).abs().max() > 1e-6:
        return ""
    return ", ".join(f"{name} has the factor {a:.4g} and needs {b:.4g}" for name, a, b in
                     zip(terms, *((x + 0.0).round(decimals=6).add(0.0).tolist() for x in factors)) if abs(a - b) > 1e-5)


def of_events(got, wanted, case):
    r"""Where it goes wrong, by the names of the events; "" where it is wrong everywhere or nothing is named."""
    if not case.events or not isinstance(got, torch.Tensor) or got.shape != wanted.shape:
        return ""
    got, wanted = got.double().flatten().tolist(), wanted.double().flatten().tolist()
    said = {}
    for name, a, b in zip(case.events, got, wanted):
        if abs(a - b) > 1e-5 * abs(b) + 1e-7:
            moves = case.gradient is not None and (a == 0) != (b == 0)
            said.setdefault(name, ("moves and should be still" if b == 0 else "is still and should move") if moves
                            else f"gives {a:.4g}, right is {b:.4g}")
    if not said:
        return ""
    if len(said) == len(set(case.events)):
        still = [i for i, b in enumerate(wanted) if b == 0] if case.gradient is not None else []
        names = ", ".join(dict.fromkeys(case.events[i] for i in still))
        return f"no event is still, and some should be: {names}" if still and all(got[i] for i in still) else ""
    return "wrong only where " + "; ".join(f"{name} ({what})" for name, what in said.items())


def of_sizes(got, wanted, case):
    r"""Wrong exactly where one of the terms is large, or small; "" where none of them tells right from wrong."""
    if not isinstance(got, torch.Tensor) or got.shape != wanted.shape:
        return ""
    wrong = ~torch.isclose(got.detach().double(), wanted.double(), rtol=1e-5, atol=1e-7).flatten()
    for name, term in case.terms.items():
        x = term.double().flatten()
        if min(wrong.sum(), (~wrong).sum()) > 2:
            if x[wrong].min() > x[~wrong].max():
                return f"wrong only where {name} is {x[wrong].min():.4g} or more; right up to {x[~wrong].max():.4g}"
            if x[wrong].max() < x[~wrong].min():
                return f"wrong only where {name} is {x[wrong].max():.4g} or less; right from {x[~wrong].min():.4g} on"
    return ""


def unused(function, cases, parameters):
    r"""Tensors among the arguments that make no difference in any case, for a function whose results are floats.

    Numbers are left out: a clip range also makes no difference where nothing comes near it.
    """
    def other(x):
        if kind(x) == "a tensor of floats":  # no multiple, no shift: a function may be free of these
            return x + 0.1 * (torch.arange(x.numel()).reshape(x.shape) * 1.7 + 0.3).sin().to(x.dtype)
        if kind(x) == "a tensor of integers":
            return x.max() - x if x.numel() and x.max() > x.min() else None
        return ~x if kind(x) == "a bool tensor" else None

    def same_without(i, case):
        if i >= len(case.args) or other(case.args[i]) is None:
            return None
        changed = replace(case, args=(*case.args[:i], other(case.args[i]), *case.args[i + 1:]))
        return agree(run(function, case), run(function, changed), case)

    said = {name: [x for x in (same_without(i, case) for case in cases) if x is not None]
            for i, name in enumerate(parameters[:max(len(case.args) for case in cases)])}
    return [name for name, same_in in said.items() if same_in and all(same_in)]


def mixes_rows(function, result, case):
    r"""Do the last rows (a group, a response) get something else when the others are left out?"""
    if not case.unit or not isinstance(result.value, torch.Tensor):
        return False
    last = [arg[-case.unit:] if isinstance(arg, torch.Tensor) and len(arg) == len(case.args[0]) else arg
             for arg in case.args]
    alone = run(function, replace(case, args=tuple(last), gradient=None, constants=()))
    return isinstance(alone.value, torch.Tensor) and not same(alone.value, result.value[-case.unit:], 1e-5, case.atol)


def hangs_on_order(function, result, case):
    r"""With the rows of each group in reverse, does the result not come along?"""
    def turned(x):
        return x.reshape(-1, case.unit, *x.shape[1:]).flip(1).reshape(x.shape)

    if case.unit < 2 or not isinstance(result.value, torch.Tensor):
        return False
    args = tuple(turned(arg) if isinstance(arg, torch.Tensor) and len(arg) == len(case.args[0]) else arg
                 for arg in case.args)
    other = run(function, replace(case, args=args, gradient=None, constants=()))
    return isinstance(other.value, torch.Tensor) and not same(other.value, turned(result.value), 1e-5, case.atol)


def by_argument(failing, cases, parameters):
    r"""The text or number that decides: wrong wherever it has one value (of a number: wherever it is not 0 or 1)."""
    wrong = [case for _, case in failing]
    right = [case for case in cases if not any(case is x for x in wrong)]
    if min(len(wrong), len(right)) < 2:
        return ""
    for i, name in enumerate(parameters):
        values = [[case.args[i] if i < len(case.args) else None for case in some] for some in (wrong, right)]
        if any(isinstance(x, (torch.Tensor, list)) or callable(x) for x in values[0] + values[1]):
            continue
        wrong_at, right_at = map(set, values)
        if wrong_at & right_at:
            continue
        if all(isinstance(x, str) for x in wrong_at | right_at) and len(wrong_at) <= len(right_at) and all(
                values[0].count(x) > 1 for x in wrong_at):
            return f"wrong only where {name} is {' or '.join(map(repr, sorted(wrong_at)))}"
        if right_at in ({0}, {1}) and len(wrong_at) > 1:
            return f"right where {name} is {right_at.pop()}, and wrong wherever it is not"
    return ""


def of_texts(failing, cases):
    r"""What all wrong texts, Nones, Trues and Falses have in common; "" where that may be chance."""
    whys = list(dict.fromkeys(case.why for _, case in failing))
    if len(whys) < 3 and all(sum(case.why == why for case in cases) == sum(
            case.why == why for _, case in failing) > 1 for why in whys):
        return f"wrong in all cases of one kind, and in no other: {', and: '.join(whys)}"
    found = [(result.value, case.wanted) for result, case in failing]
    if len(found) < 3 or not all(kind(x) in ("None", "a text") for pair in found for x in pair):
        return ""
    if all(None not in pair and pair[0].strip() == pair[1] for pair in found):
        return "spaces stand around the answer"
    if all(wanted is None for _, wanted in found):
        return "it finds an answer where there is none"
    if all(wanted is not None and (got is None or got in wanted) for got, wanted in found):
        return "it finds no answer, or only a part of it"
    if all(None not in pair and pair[1] in pair[0] for pair in found):
        return "it finds more than the answer"
    return ""


def evidence(result, case):
    r"""How much a failing case says: one for a True, False, None or text, two for a number, more for a tensor."""
    wanted = case.gradient if case.gradient is not None else case.wanted
    return wanted.numel() + 1 if isinstance(wanted, torch.Tensor) else \
        2 if kind(wanted) in ("a number", "a tuple") else 1


# --- the diagnosis ---

def diagnose(name, function, cases):
    r"""(what is wrong with the function, whether that is a cause) or None where it is right in every case."""
    from wrong_answers import WRONG

    results = [run(function, case) for case in cases]
    failing = [(r, c) for r, c in zip(results, cases) if not right(r, c) and not c.extra] or \
        [(r, c) for r, c in zip(results, cases) if not right(r, c)]
    if not failing:
        return None
    result, case = failing[0]
    parameters = list(inspect.signature(function).parameters) + [""] * 9

    def seen(case, what="the result"):
        given = ", ".join(f"{parameter}={short(arg)}" for parameter, arg in zip(parameters, case.args))
        return f"\n  Seen in {what} of {name}({given})."

    # 1. Facts that are no matter of a formula
    for result, case in failing:
        if result.changes is not None:
            return f"changes its argument {parameters[result.changes]} in place: make a new one.", True
        if not result.error and case.wanted is not ValueError and case.wanted is not NOT_COMPARED:
            said = wrong_type(result.value, case.wanted)
            if said:
                return said + "." + seen(case), True
    result, case = failing[0]
    if case.extra and not result.error:
        if result.leaks:
            into = ", ".join(parameters[i] for i in result.leaks)
            return f"right, but gradient flows into {into}, constants of the update: detach.", True
        return f"right, except: {case.why}.{seen(case)}", True
    # 2. Known mistakes, in every case
    if sum(evidence(r, c) for r, c in failing if not r.error) > 1:
        core = [(r, c) for r, c in zip(results, cases) if not c.extra]
        for message, wrong in WRONG.get(name, []):
            if all(agree(r, run(wrong, c), c) for r, c in core):
                return message + seen(case), True
    for result, case in failing:
        if result.error and case.wanted is not ValueError:
            said = (str(result.error).strip() or "no message").splitlines()[0][:160]
            return f"it raised {type(result.error).__name__}: {said}{where(result.error)}.{seen(case)}", True
    # 3. Facts that hold in every case that fails
    result, case = failing[0]
    values = [(r, c) for r, c in failing if not value_right(r, c)]
    gradients = [(r, c) for r, c in failing if not gradient_right(r, c)]
    slopes = [(zeros_for_none(r.gradient, c.gradient), c.gradient) for r, c in gradients]
    if not values and all(c.wanted is not NOT_COMPARED for _, c in gradients):
        said = next(filter(None, (of_terms(*pair, c) for pair, (_, c) in zip(slopes, gradients))), "")
        if all(r.gradient is None or not r.gradient.any() for r, _ in gradients):
            return f"the value is right, but no gradient reaches {parameters[case.at]}.", True
        return ("the value is right and the gradient is not: too much or too little is detached" + (
            f". In the gradient {said}" if said else "") + "." + seen(case, "the gradient")), True
    if values and not gradients and all(c.gradient is not None for _, c in values):
        said = one_factor([(r.value, c.wanted) for r, c in values], [c for _, c in values])
        said = said or difference(values[0][0].value, values[0][1].wanted)
        return f"the gradient is right and the value is not: {said}.{seen(case)}", True
    pairs = [(r.value, c.wanted) for r, c in values] + slopes
    of = [c for _, c in values] + [c for _, c in gradients]
    if all(c.wanted is not ValueError for c in of):
        said = one_factor(pairs, of) or argument_factor(pairs, of, parameters) or rearranged(pairs)
        if said:
            return said + "." + seen(case), True
    for facts in (of_terms, of_events, of_sizes):
        for (got, wanted), c in reversed(list(zip(pairs, of))):  # gradients first
            if (c.gradient is None) == (wanted is c.wanted):
                said = facts(got, wanted, c)
                if said:
                    return f"{said}.\n  Seen {'in the gradient, ' if c.gradient is not None else ''}{c.why}.", True
    said = group_factor(pairs, of) or one_step(pairs)
    if said:
        return said + "." + seen(case), True
    for (result, case) in failing:
        said = next((what for what, holds in case.properties.items() if not result.error and all(
            c.properties and c.properties[what](r.value, *c.args) for r, c in failing if c.properties)), "")
        if said:
            return said + "." + seen(case), True
        if mixes_rows(function, result, case):
            return (f"the last {f'{case.unit} rows get' if case.unit > 1 else 'row gets'} something else when the "
                    f"other rows are left out: the wrong axis, or a sum over too much.{seen(case)}"), True
        if hangs_on_order(function, result, case):
            return f"with the rows of a group in another order the results do not come along.{seen(case)}", True
    result, case = failing[0]
    core = [c for c in cases if not c.extra]
    if kind(result.value) in ("a number", "a tensor of floats") and not any(r.error for r, _ in failing):
        names = unused(function, core, parameters)
        if names:
            return f"it makes no use of {' and '.join(names)}.{seen(case)}", True
    said = by_argument(failing, core, [name for name in parameters if name]) or values and gradients and \
        argument_factor(*zip(*[((r.value, c.wanted), c) for r, c in values]), parameters).replace("it", "the value", 1)
    if said:
        return f"{said}.{seen(case)}", True
    # 4. No cause
    if kind(case.wanted) in ("a bool", "a text", "None", "a number"):
        said = [f"{name}({', '.join(map(short, c.args))}) gives {short(r.value)}" + (f": {c.why}" if c.why else "")
                for r, c in failing]
        common = of_texts(failing, core)
        return (common or f"wrong in {len(said)} of {len(cases)} cases") + ".\n  " + "\n  ".join(
            said[:4] + ["..."] * (len(said) > 4)), bool(common)
    if values:
        if case.wanted is ValueError:
            return f"{case.why}.{seen(case)}", True
        return f"{values[0][1].why + ': ' if values[0][1].why else ''}" \
            f"{difference(values[0][0].value, values[0][1].wanted)}.{seen(values[0][1])}", False
    return f"{case.why + ': ' if case.why else ''}{difference(*slopes[0])}.{seen(case, 'the gradient')}", False


def check(solution, name, cases):
    r"""Fails with a diagnosis unless the function `name` of `solution` is right on every case."""
    function = getattr(solution, name, None)
    if function is None:
        fail(f"{name}: missing: there is no function of this name in the file")
    try:
        said, empty = diagnose(name, function, cases), False
    except NotImplementedError:
        said, empty = None, True
    if empty:  # outside the except, or pytest would show two failures
        from course import EXERCISES

        fail(f"{name}: empty. {EXERCISES[name].read}.")
    if said:
        fail(f"{name}: {said[0]}")
