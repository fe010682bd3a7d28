r"""Mistakes by machine: every small change of a model answer that changes what it computes.

`mutants(function)` yields (what was changed, the changed function). Changes are made in the syntax tree, one at a time:
a sign, a term or a factor dropped, a product for a quotient, a call dropped (.exp(), .detach(), .clamp(...)), a
comparison turned, max for min, another axis, a constant one larger, torch.where without its condition; and of each
returned value: detached, negated, doubled.
"""

import ast
import copy
import inspect
import textwrap

SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Div: ast.Mult, ast.Lt: ast.Gt, ast.Gt: ast.Lt,
           ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.NotEq}
NAMES = {"minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin", "sum": "mean", "mean": "sum",
         "rpartition": "partition"}


def changed(node):
    r"""Every replacement of one node of the tree."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in SWAPPED:
            yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
        yield node.left
        if not isinstance(node.op, ast.Div):
            yield ast.UnaryOp(ast.USub(), node.right) if isinstance(node.op, ast.Sub) else node.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield ast.Compare(node.left, [SWAPPED[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in NAMES:
            yield ast.Call(ast.Attribute(node.func.value, NAMES[node.func.attr], ast.Load()), node.args, node.keywords)
        if ast.unparse(node.func) == "torch.where":
            yield node.args[1]
        elif not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("torch", "self")):
            yield node.func.value
    elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.arg in ("dim", "keepdim"):
        yield ast.keyword(node.arg, ast.Constant(1 - node.value.value if node.value.value in (0, 1) else 0))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Call(ast.Attribute(node.value, "detach", ast.Load()), [], []))
        yield ast.Return(ast.UnaryOp(ast.USub(), node.value))
        yield ast.Return(ast.BinOp(ast.Constant(2), ast.Mult(), node.value))


def places(tree):
    r"""(parent, field, index or None) of every node below the function's arguments, exceptions left out."""
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("args", "decorator_list", "exc", "type", "defaults") and not isinstance(parent, ast.Call):
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST):
                    yield parent, field, index, node


def mutants(function):
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source)
    for number, (_, _, _, node) in enumerate(list(places(tree))):
        for which, _ in enumerate(list(changed(node))):
            fresh = copy.deepcopy(tree)
            parent, field, index, node = list(places(fresh))[number]
            new = list(changed(node))[which]
            what = f"{ast.unparse(node)}  ->  {ast.unparse(new)}"
            if index is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[index] = new
            namespace = dict(function.__globals__)
            exec(compile(ast.fix_missing_locations(fresh), "<mutant>", "exec"), namespace)
            yield what, namespace[function.__name__]
