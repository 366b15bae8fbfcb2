"""Small faults in Python source, of the kind a hurried edit makes.

A wrong border, operator, constant or sign; swapped or missing arguments; a condition that always holds; a lost line.

A fault is a change of the syntax tree in memory; no file is written. Left alone is what no test should notice: type
annotations, decorators, docstrings, messages, assertions, imports, and arguments that only check (`strict`) or that the
CPU cannot tell apart (`device`).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_TWINS = "min max, minimum maximum, amin amax, argmin argmax, any all, floor ceil, sin cos, zeros ones"
TWINS = {a: b for pair in _TWINS.split(",") for a, b in (pair.split(), pair.split()[::-1])}
TWINS |= {"zeros_like": "ones_like", "ones_like": "zeros_like"}
SYMMETRIC = {"min", "max", "minimum", "maximum", "hypot", "equal", "not_equal", "isclose", "allclose", "isinstance"}
EVEN = {"abs", "square", "norm"}  # what they return does not know the sign
UNSEEN = {"strict", "device"}
TALK = {"say", "print", "log"}
TALKERS = {"warnings", "logging", "logger"}
UNTOUCHED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}
UNTOUCHED = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)


@dataclass(frozen=True)
class Place:
    """Where a node hangs in the tree: `field` of the last of the nodes `above`, at `index` if the field is a list."""

    above: tuple[ast.AST, ...]
    field: str
    index: int | None
    scope: tuple[ast.AST, ...]  # the classes and functions around it

    @property
    def node(self) -> ast.AST:
        value = getattr(self.above[-1], self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.above[-1], self.field, node)
        else:
            getattr(self.above[-1], self.field)[self.index] = node


@dataclass(frozen=True)
class Fault:
    """One change in one file; `before` and `after` show it in an excerpt that occurs once in its function."""

    file: str
    line: int
    function: str
    before: str
    after: str
    tree: ast.Module
    place: Place
    replacement: ast.AST

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.function}: {self.before} -> {self.after}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the fault in the list of excused ones; the line is no part of it, for lines move."""
        return self.file, self.function, f"{self.before} -> {self.after}"

    def code(self) -> CodeType:
        """The faulty file, compiled. The tree stays faulty: call it in a process of its own."""
        self.place.put(self.replacement)
        return compile(ast.fix_missing_locations(self.tree), self.file, "exec")


def faults(file: str, source: str) -> list[list[Fault]]:
    """The faults that can be put into a file: for each place that admits some, all that it admits."""
    tree = ast.parse(source)
    texts: dict[ast.AST, str] = {}
    found = []
    for place in _places((tree,), ()):
        here = []
        for replacement in _replacements(place):
            node = place.node
            ast.copy_location(replacement, node)
            before, after = _excerpts(place, replacement, texts)
            function = ".".join(each.name for each in place.scope) or "(module)"
            if before != after:
                here.append(Fault(file, node.lineno, function, before, after, tree, place, replacement))
        found += [here] if here else []
    return found


def _places(above: tuple[ast.AST, ...], scope: tuple[ast.AST, ...]) -> Iterator[Place]:
    """The places below the last of the nodes `above`, from top to bottom."""
    if isinstance(above[-1], ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        scope = (*scope, above[-1])
    for field, value in ast.iter_fields(above[-1]):
        if field in UNTOUCHED_FIELDS:
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST) and not _untouched(node):
                yield Place(above, field, index, scope)
                yield from _places((*above, node), scope)


def _untouched(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()):  # a docstring
            return True
        case ast.Call() | ast.Expr(value=ast.Call()):
            return _talks((node.value if isinstance(node, ast.Expr) else node).func)
        case ast.FunctionDef(name=name):
            return name == "__repr__"
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name == "__all__"
        case ast.If(test=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name == "TYPE_CHECKING"
        case ast.keyword(arg=name):
            return name in UNSEEN
    return isinstance(node, UNTOUCHED)


def _talks(function: ast.AST) -> bool:
    match function:
        case ast.Name(id=name):
            return name in TALK
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return owner in TALKERS or name == "say"
    return False


def _name(call: ast.Call) -> str:
    """The last word of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _replacements(place: Place) -> Iterator[ast.AST]:
    node = place.node
    if place.field in ("test", "ifs") and not isinstance(place.above[-1], ast.While):  # that would never end
        yield ast.Constant(True)
    if place.field == "test":
        yield ast.Constant(False)
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield _changed(node, ops=[*ops[:i], COMPARISONS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in OPERATORS and not _is_text(left) and not _is_text(right):
                yield _changed(node, op=OPERATORS[type(op)]())
            if isinstance(op, ast.Sub) and not _sign_is_lost(place.above[-1]):
                yield _changed(node, left=right, right=left)
        case ast.AugAssign(op=op):
            yield _changed(node, op=OPERATORS[type(op)]())
            yield ast.Pass()
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.BoolOp(op=op):
            yield _changed(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Slice():
            for end in ("lower", "upper"):
                bound = getattr(node, end)
                if bound and not any(isinstance(each, ast.Constant) for each in ast.walk(bound)):
                    yield _changed(node, **{end: ast.BinOp(bound, ast.Add(), ast.Constant(1))})
        case ast.Call():
            yield from _other_calls(node)
        case ast.Expr(value=ast.Call()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()


def _other_calls(call: ast.Call) -> Iterator[ast.AST]:
    """The call of the function's opposite, with neighbouring arguments swapped, without one of its keywords."""
    name, args = _name(call), call.args
    if name in TWINS:
        yield _changed(call, func=_changed(call.func, **{"attr" if "attr" in call.func._fields else "id": TWINS[name]}))
    for i, (a, b) in enumerate(pairwise(args)):
        alike = isinstance(a, ast.Constant) == isinstance(b, ast.Constant)  # else mostly of two types: easily noticed
        if name not in SYMMETRIC and alike and not any(isinstance(each, ast.Starred) for each in (a, b)):
            yield _changed(call, args=[*args[:i], b, a, *args[i + 2 :]])
    for keyword in call.keywords:
        if keyword.arg and keyword.arg not in UNSEEN:
            yield _changed(call, keywords=[each for each in call.keywords if each is not keyword])


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _sign_is_lost(parent: ast.AST) -> bool:
    match parent:
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=2)):
            return True
        case ast.Attribute(attr=name):
            return name in EVEN
    return isinstance(parent, ast.Call) and _name(parent) in EVEN


def _is_constant(node: ast.AST) -> bool:
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _changed(node: ast.AST, **fields) -> ast.AST:
    return ast.copy_location(type(node)(**dict(ast.iter_fields(node)) | fields), node)


def _excerpts(place: Place, replacement: ast.AST, texts: dict[ast.AST, str]) -> tuple[str, str]:
    """The smallest expression or statement around the place that occurs once in its function, before and after.

    A constant is shown in what surrounds it: `x[1]` says more than `1`.
    """
    node = place.node
    whole = place.scope[-1] if place.scope else place.above[0]
    if whole not in texts:
        texts[whole] = ast.unparse(whole)
    shown, prefix = node, ""
    for higher in reversed(place.above):
        if isinstance(higher, ast.arguments):
            prefix = _parameter(higher, shown) + "="
            break
        alone = not _is_constant(shown) and not isinstance(shown, ast.Slice)
        holds_statements = hasattr(higher, "body") and not isinstance(higher, ast.Lambda | ast.IfExp)
        if holds_statements or (alone and texts[whole].count(ast.unparse(shown)) <= 1):
            break
        shown = higher
    before = prefix + ast.unparse(shown).strip()
    place.put(replacement)
    after = prefix + ast.unparse(replacement if shown is node else shown).strip()
    place.put(node)
    return before, after


def _parameter(arguments: ast.arguments, default: ast.AST) -> str:
    """The name of the parameter that has this default."""
    last_first = zip(reversed([*arguments.posonlyargs, *arguments.args]), reversed(arguments.defaults), strict=False)
    named = [*last_first, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return next(parameter.arg for parameter, value in named if value is default)
