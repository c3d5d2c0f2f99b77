"""What a torch.export program says, looked at before PyTorch makes Python of it.

A program is JSON. PyTorch evaluates its sizes (sympy's `sympify` is `eval`), writes its names and guards into the
source of functions that it executes, imports the modules that its containers name, and calls the operators it asks
for. Whoever made the file then runs what they like, without any pickle. Here every text must be of a kind that cannot.

What it computes is its own affair: it may take more time and memory than there are.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["is_arithmetic", "is_container", "is_operator", "is_plain", "unsafe_text"]

_MOST_CHARACTERS, _MOST_DEPTH = 65_536, 150

_FUNCTIONS = frozenset(
    {
        "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "ExprCondPair", "Float",
        "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv",
        "Integer", "IsNonOverlappingAndDenseIndicator", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
        "ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod", "RShift",
        "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat",
        "TruncToFloat", "TruncToInt", "Unequality", "Where", "Xor", "abs", "cast_symbool_to_symint_guardless", "ceil",
        "ceiling", "exp", "float", "floor", "int", "log", "max", "min", "round", "sqrt",
    }
)  # fmt: skip
# PyTorch's own functions that sympy knows nothing of, those of guards, and what a guard asks of a tensor.
_OPAQUE = re.compile(r"(OpaqueUnaryFn|BitwiseFn)_[a-z0-9_]+")
_OF_MODULES = re.compile(r"math\.[a-z][a-z0-9]*|torch\.sym_[a-z]+")
_OF_TENSORS = frozenset({"size", "stride", "storage_offset", "item"})
_ARITHMETIC = (
    ast.BinOp, ast.BoolOp, ast.Compare, ast.Subscript, ast.UnaryOp, ast.boolop, ast.cmpop, ast.expr_context,
    ast.operator, ast.unaryop,
)  # fmt: skip
# The name of a symbol or an input, or the digits of a Float.
_QUOTED = re.compile(r"[A-Za-z][A-Za-z0-9_]*|-?[0-9.]+(e[+-]?[0-9]+)?")
_CHARACTERS = re.compile(r"[ !%&()*+,\-./0-9<=>A-Z\[\]_a-z|~'\"]+")

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|mkl|mkldnn|onednn|prims|quantized|quantized_decomposed|torchao|torchvision)(\.\w+){1,2}"
    # Not those that call other code: compiled, assembled, of TorchScript's classes.
    r"|torch\.ops\.higher_order\.(associative_scan|auto_functionalized|auto_functionalized_v2|cond|flex_attention"
    r"|hints_wrapper|invoke_subgraph|map_impl|out_dtype|scan|strict_mode|tag_activation_checkpoint|while_loop|wrap"
    r"|wrap_activation_checkpoint|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|or_|pos|pow|rshift|sub|truediv)"
    r"|math\.trunc|torch\.(sym_(float|int|ite|max|min|not|sqrt|sum)|_sym_sqrt)"
    r"|torch\._functorch\.predispatch\.(lazy_load_decompositions|_(add|remove)_batch_dim|_(make|unpack)_dual"
    r"|_(vmap|jvp)_(in|de)crement_nesting|_(enter|exit)_dual_level|_unwrap_for_grad)"
    r"|torch\._C\._set_grad_enabled|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
)
_OF_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save)(\.\w+)?")
# Names of values, symbols, arguments and classes.
_KEY = re.compile(r"[A-Za-z0-9_.:<>-]*")


def unsafe_text(content: bytes) -> str:
    """What in the JSON of a program PyTorch must not be given, with the key it is under; empty where there is nothing.

    Raises ValueError for what is no JSON.
    """
    # By the parser that PyTorch has, which takes the last of two equal keys.
    for key, value in _texts(json.loads(content.decode())):
        sound = _SOUND.get(key)
        if sound is None or not sound(value):
            return f"{key}: {value}"
    return ""


def is_plain(text: str) -> bool:
    """Whether `text` can stand in quotes in Python's source."""
    return text.isprintable() and not set(text) & set("'\"\\")


def is_operator(name: str) -> bool:
    """Whether `name` is of an operator that computes, and does not read or write files."""
    return bool(_OPERATORS.fullmatch(name)) and not _OF_FILES.fullmatch(name)


def is_container(text: str) -> bool:
    """Whether `text` is a tree of containers (torch.utils._pytree) that names no module to be imported."""
    try:
        return _is_tree(json.loads(text))
    except (ValueError, RecursionError):
        return False


def is_arithmetic(text: str) -> bool:
    """Whether `text` is Python that calculates with numbers, symbols and sizes of inputs, and calls nothing else."""
    if len(text) > _MOST_CHARACTERS or not _CHARACTERS.fullmatch(text):
        return False
    try:
        return _calculates(ast.parse(text.strip(), mode="eval").body, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _texts(document: Any) -> Iterator[tuple[str, str]]:
    """Every text with the key it is under, however deep in lists; and every key, as of the key `a key`."""
    waiting = [("", document)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            yield from (("a key", name) for name in value)
            waiting.extend(value.items())
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)
        elif isinstance(value, str):
            yield key, value


def _is_tree(value: Any) -> bool:
    """Texts in it are JSON in their turn, and objects nodes of the tree: others become enumerations and factories."""
    match value:
        case dict():
            return value.keys() <= {"type", "context", "children_spec"} and all(map(_is_tree, value.values()))
        case list():
            return all(map(_is_tree, value))
        case str():
            try:
                return _is_tree(json.loads(value))
            except ValueError:
                return is_plain(value)
        case _:
            return True


def _calculates(node: ast.AST, depth: int) -> bool:
    match node:
        case ast.Constant(value=str() as text):
            sound = bool(_QUOTED.fullmatch(text))
        case ast.Constant(value=value):
            sound = isinstance(value, int | float)
        case ast.Name(id=name):
            sound = "__" not in name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            sound = bool(_OF_MODULES.fullmatch(f"{module}.{name}"))
        case ast.Attribute(value=ast.Subscript(), attr=name):
            sound = name in _OF_TENSORS
        case ast.Call(func=ast.Name(id=name)):
            sound = name in _FUNCTIONS or bool(_OPAQUE.fullmatch(name))
        case ast.Call(func=function):
            sound = isinstance(function, ast.Attribute)
        case ast.keyword(arg=name):
            sound = name is not None
        case _:
            sound = isinstance(node, _ARITHMETIC)
    return sound and depth < _MOST_DEPTH and all(_calculates(each, depth + 1) for each in ast.iter_child_nodes(node))


def _is_name(text: str) -> bool:
    return not text or text.isidentifier()


def _is_key(text: str) -> bool:
    return bool(_KEY.fullmatch(text))


def _is_number(text: str) -> bool:
    return text in ("Infinity", "-Infinity", "NaN")


def _is_any(_: str) -> bool:
    return True


# By the key of PyTorch's schema (torch/_export/serde/schema.py). A text under any other key is refused: nobody has
# looked at what becomes of it.
_SOUND: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("expr_str", "guards_code"), is_arithmetic),
    **dict.fromkeys(("target", "as_operator"), is_operator),
    **dict.fromkeys(("in_spec", "out_spec"), is_container),
    **dict.fromkeys(("name", "as_name", "forward_arg_names", "field_names"), _is_name),
    "a key": _is_key,
    **dict.fromkeys(("as_float", "as_floats", "as_float_lists", "real", "imag"), _is_number),
    **dict.fromkeys(
        (
            "buffer_name", "class_fqn", "custom_obj_name", "fqn", "parameter_name", "tensor_constant_name",
            "torch_version", "type", "user_input_name", "verifiers",
        ),
        is_plain,
    ),
    # What PyTorch keeps for people to read, some of it in comments of what it compiles.
    **dict.fromkeys(("custom", "from_node", "nn_module_stack", "source_fn_stack", "torch_fn"), str.isprintable),
    # That, in several lines, and arguments of operators, which PyTorch quotes.
    **dict.fromkeys(("as_string", "as_strings", "stack_trace"), _is_any),
}  # fmt: skip
