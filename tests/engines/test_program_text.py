"""A torch.export program whose text would run as code is refused before it does; a sound one loads as ever."""

import ast
import importlib
import io
import json
import logging
import shutil
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim

from mlserve.engines.engine import EngineSettings
from mlserve.engines.program_text import is_arithmetic, is_container, is_operator, is_plain, unsafe_text
from mlserve.engines.torch_engine import TorchEngine, load_program
from mlserve.errors import EngineError, ModelFileError
from mlserve.model.tensors import TensorSpec


class Shapes(torch.nn.Module):
    """Sizes that are sums, products, quotients, remainders and maxima, one that data decide, and guards."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.convolution = torch.nn.Conv1d(1, 2, 3, stride=2)

    def forward(self, x, y):
        with torch.no_grad():
            first = self.linear(x)
        flat = torch.cat([x, y], 0).reshape(-1)
        steps = torch.arange(x.shape[0] // 2 + (y.shape[0] * 3) % 5)
        padded = torch.nn.functional.pad(flat, (0, max(0, 16 - flat.shape[0])))
        return {
            "convolved": self.convolution(flat[None, None]), "first": first, "halves": flat.view(2, -1),
            "found": (x > 0).nonzero(), "padded": padded, "steps": steps, "root": flat * x.shape[0] ** 0.5,
        }  # fmt: skip


def exported(module, path, arguments, keywords=None, shapes=None):
    torch.export.save(torch.export.export(module.eval(), arguments, keywords, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    return exported(torch.nn.Linear(3, 2), path, (torch.ones(4, 3),), None, ({0: Dim("rows", min=2, max=64)},))


def rewritten(program, out, change, sample=None):
    """`program` with the document of its text changed, and perhaps with other sample inputs."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("models/model.json"):
                document = json.loads(content)
                content = json.dumps(change(document) or document).encode()
            elif sample is not None and "sample_inputs" in name:
                stream = io.BytesIO()
                torch.save(sample, stream)
                content = stream.getvalue()
            target.writestr(name, content)
    return out


def graph_of(document):
    return document["graph_module"]["graph"]


def open_sizes(document):
    return [
        size["as_expr"] for value in graph_of(document)["tensor_values"].values() for size in value["sizes"]
        if "as_expr" in size
    ]  # fmt: skip


def signature_of(document):
    return next(each["signature"] for each in document["graph_module"]["module_call_graph"] if each["signature"])


def with_size(document, code):
    open_sizes(document)[0]["expr_str"] = code


def with_guard(document, code):
    document["guards_code"] = [f"{code} is None"]


def with_file(document, code):
    """A tensor that lies in a file, which is made where there is none."""
    graph = graph_of(document)
    last = graph["nodes"][-1]
    arguments = {"filename": {"as_string": code.split("'")[1]}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    inputs = [{"name": name, "arg": value, "kind": 1} for name, value in arguments.items()]
    made = {**last, "target": "torch.ops.aten.from_file.default", "name": "f", "inputs": inputs}
    made["outputs"] = [{"as_tensor": {"name": "f"}}]
    graph["tensor_values"]["f"] = graph["tensor_values"][last["outputs"][0]["as_tensor"]["name"]]
    graph["nodes"].insert(0, made)


def with_module(document, _):
    """A container whose key is a member of an enumeration in the module `planted`."""
    signature = signature_of(document)
    spec = json.loads(signature["in_spec"])
    member = {"__enum__": True, "fqn": "planted:Kind", "name": "A"}
    spec[1]["children_spec"][1]["context"] = json.dumps([member])
    signature["in_spec"] = json.dumps(spec)


def use(path, load):
    module = load(path).module()
    module(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("change", "told"),
    [(with_size, "expr_str: "), (with_guard, "guards_code: "), (with_file, "target: "), (with_module, "in_spec: ")],
)
def test_text_that_runs_is_refused_before_it_does(program, tmp_path, monkeypatch, change, told):
    canary = tmp_path / "canary"
    code = f"open('{canary}', 'w').close()"
    (tmp_path / "planted.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    evil = rewritten(program, tmp_path / "evil.pt2", lambda document: change(document, code))
    with pytest.raises(ModelFileError, match=rf"evil\.pt2 holds text that PyTorch could run as code .*{told}"):
        load_program(evil)
    tensor = TensorSpec("x", "float32", ("batch", 3))
    with pytest.raises(EngineError, match=r"evil\.pt2 cannot be loaded as .*could run as code"):
        TorchEngine(evil, EngineSettings(), (tensor,), (tensor,))
    assert not canary.exists()
    use(program, load_program)
    importlib.invalidate_caches()
    logging.disable(logging.CRITICAL)
    try:
        use(evil, torch.export.load)
    except Exception:  # some fail, once they have run
        pass
    finally:
        logging.disable(logging.NOTSET)
    assert canary.exists()  # the control: it would have run


def test_a_key_of_the_sample_inputs_that_runs_is_refused_before_it_does(program, tmp_path):
    canary = tmp_path / "canary"
    sample = (({f"+str(open('{canary}','w').close())+''+": torch.ones(4, 3)},), {})
    evil = rewritten(program, tmp_path / "evil.pt2", lambda _: None, sample)
    with pytest.raises(ModelFileError, match=r"could run as code .*an input: "):
        load_program(evil)
    assert not canary.exists()
    use(evil, torch.export.load)
    assert canary.exists()  # the control


class Mode(torch.nn.Module):
    def forward(self, x, mode):
        return -x if mode == "less" else x


def test_an_input_that_is_a_text_is_refused_where_it_could_end_its_quotes(tmp_path):
    sound = exported(Mode(), tmp_path / "sound.pt2", (torch.ones(4, 3), "less"))
    assert load_program(sound).module()(torch.ones(4, 3), "less").sum() == -12
    path = exported(Mode(), tmp_path / "mode.pt2", (torch.ones(4, 3), "it's"))
    with pytest.raises(ModelFileError, match=r"could run as code .*an input: it's"):
        load_program(path)


def test_an_archive_that_holds_a_second_program_in_the_old_format_is_refused(program, tmp_path):
    path = tmp_path / "both.pt2"
    shutil.copy(program, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.8")
    with pytest.raises(RuntimeError, match="file in archive is not in a subdirectory"):
        load_program(path)


def test_a_sound_program_with_many_kinds_of_sizes_loads_and_runs(tmp_path):
    shapes = {"x": {0: Dim("rows", min=2, max=1000)}, "y": {0: Dim("others", min=2, max=64)}}
    path = exported(Shapes(), tmp_path / "shapes.pt2", (torch.ones(4, 4),), {"y": torch.ones(6, 4)}, shapes)
    with zipfile.ZipFile(path) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json"))).decode()
    assert all(word in text for word in ("FloorDiv(", "Mod(", "Max(", "Mul(", "Symbol('u0'", "guards_code"))
    assert json.loads(text)["guards_code"]
    results = load_program(path).module()(torch.ones(7, 4), y=torch.ones(9, 4))
    assert results["steps"].shape == (7 // 2 + 9 * 3 % 5,)
    assert results["convolved"].shape == (1, 2, 31)


@pytest.mark.parametrize(
    "text",
    [
        "s0", "s0*4 + 1", "4*s0 // 3", "-s0", "Max(1, s0 - 2)", "Eq(Mod(s0, 3), 0)", "s0 >= 2", "~(s0 < 3) & (s1 > 2)",
        "Add(FloorDiv(Symbol('s77', positive=True, integer=True), Integer(2)), Integer(-1))", "int_oo", "oo", "true",
        "Mul(Float('1.5e-10', precision=53), ToFloat(Symbol('u0', integer=True)))", "Rational(1, 3)",
        "OpaqueUnaryFn_sqrt(ToFloat(s0))", "BitwiseFn_bitwise_and(s0, 3)",
        "((L['x'].size()[0] // 2) + ((3*L['y'].size()[0]) % 5)) != 1", "L['args'][0].stride()[1] == 4",
        "math.floor(L['x'].size()[0] / 2.0) >= 2 and torch.sym_max(1, L['y'].storage_offset()) <= 9",
    ],
)  # fmt: skip
def test_what_programs_calculate_with_is_arithmetic(text):
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "print(1)", "open('x')", "__import__('os')", "s0.__class__", "s0.is_integer()", "(sympify)(s0)",
        "Max(1)(2)", "lambda: 1", "lambda", "[print(1)][0]", "s0 if s1 else s2", "f'{print(1)}'", "Symbol('x.y')",
        "Symbol('os.system(1)')", "Max('print()', 1)", "s0 # s1", "s0\n+ 1", "s0; s1", "(s0 := 2)", "'a' 'b\\x28'",
        "Symbol(**s0)", "Max(*s0)", "L['x'].numpy()[0]", "L['x'].size.__self__", "math.__loader__", "torch.load(s0)",
        "torch.os.system(s0)", "sympify(s0)", "exec(s0)", "{s0}", "s0, print", "b'x'", "1j", "...", "\uff53\uff10",
        "(" * 180 + "s0" + ")" * 180 + "(1)", "-" * 200 + "s0", "s0+" * 40_000 + "s0",
    ],
)  # fmt: skip
def test_what_would_be_more_than_arithmetic_is_none(text):
    assert not is_arithmetic(text)


@given(st.text("abgs0(){}[]._'\"+*, :=L", max_size=40))
def test_what_is_arithmetic_calls_known_functions_alone(text):
    if is_arithmetic(text):
        called = [node.func for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Call)]
        assert all(isinstance(each, ast.Attribute) or each.id == "abs" for each in called)


@pytest.mark.parametrize(
    ("name", "computes"),
    [
        ("torch.ops.aten.linear.default", True), ("torch.ops.higher_order.cond", True), ("_operator.floordiv", True),
        ("torch.ops.torchvision.nms.default", True), ("torch.sym_max", True), ("math.trunc", True),
        ("torch._functorch.predispatch._vmap_increment_nesting", True), ("torch._functorch.predispatch.torch", False),
        ("torch.ops.higher_order.wrap_with_set_grad_enabled", True), ("torch.os.system", False),
        ("torch.ops.aten.save.default", False), ("torch.ops.aten.from_file.out", False), ("torch.load", False),
        ("torch.ops.load_library", False), ("torch.ops.image.write_file.default", False), ("", False),
        ("torch.ops.higher_order.inline_asm_elementwise", False), ("_operator.methodcaller", False),
        ("torch.ops.higher_order.call_torchbind", False), ("torch.ops.aten.add.Tensor.__call__", False),
    ],
)  # fmt: skip
def test_operators_compute_and_touch_no_files(name, computes):
    assert is_operator(name) is computes


def test_containers_name_their_classes_and_nothing_to_import():
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "builtins.dict", "context": '["a", "b c"]', "children_spec": [leaf, leaf]}
    assert is_container(json.dumps([1, tree]))
    factory = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": []}
    for context in (json.dumps(factory), json.dumps([{"__enum__": 1}]), json.dumps(["a'"]), "a'"):
        assert not is_container(json.dumps([1, {**tree, "context": context}]))
    assert not is_container(json.dumps([1, {**tree, "context": factory}]))
    assert not is_container("no json at all")


@given(st.text())
def test_what_is_plain_stays_a_text_between_either_quotes(text):
    if is_plain(text):
        assert eval(f"'{text}'") == eval(f'"{text}"') == text


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_text_under_a_key_that_nobody_knows_is_refused(value):
    document = {"range_constraints": {"s0": {"min_val": value}}}
    found = unsafe_text(json.dumps(document).encode())
    assert bool(found) == (not _is_of_numbers(value))


def _is_of_numbers(value):
    match value:
        case int():
            return True
        case list():
            return all(map(_is_of_numbers, value))
        case dict():
            return not unsafe_text(json.dumps(value).encode())
        case _:
            return False
