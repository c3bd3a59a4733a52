"""The rules between the rooms: imports go down only, steps and libraries stay apart, facts have types."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("tasks.tracking", "tasks.aws", "tasks.streaming", "tasks.learning", "tasks.devices")
LOWEST = ("tasks.errors", "tasks.files", "tasks.naming", "tasks.redaction", "tasks.state")  # what every room may import
ALLOWED = {"tasks.streaming.objects.s3": ("tasks.aws.codes",)}  # a library that needs a table of another
MODULES = sorted(path for folder in ("flows", "tasks", "deployments") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def names(modules: set[str], *packages: str) -> set[str]:
    return {
        module
        for module in modules
        if module.startswith(tuple(f"{package}." for package in packages)) or module in packages
    }


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_only_go_down(path):
    module, imports = module_of(path), imported_by(path)
    assert f"{module}.".startswith("tasks.tracking.") or not names(imports, "mlflow")
    library = next((library for library in LIBRARIES if f"{module}.".startswith(f"{library}.")), None)
    if library:
        allowed = (library, *LOWEST, *ALLOWED.get(module, ()))
        assert not names(imports, "flows", "deployments", "prefect")
        assert names(imports, "tasks") <= names(imports, *allowed)
    elif module.startswith("tasks"):
        assert not names(imports, "flows", "deployments")
        assert module != "tasks.errors" or imports == {"tasks.redaction", "tasks.redaction.redact_text"}
        assert module != "tasks.state" or imports == {"pathlib", "pathlib.Path"}
        assert module not in LOWEST or names(imports, "tasks") <= names(imports, "tasks.redaction")
    elif module.startswith("flows"):
        assert not names(imports, "deployments")


FLOWS = sorted(path.stem for path in (ROOT / "flows").glob("*ing.py"))


@pytest.mark.parametrize(
    "flow", [flow if flow == "training" else pytest.param(flow, marks=pytest.mark.long) for flow in FLOWS]
)
def test_help_needs_neither_torch_nor_mlflow_nor_pyarrow(flow):
    script = f"""
import runpy, sys
sys.argv = ["flows.{flow}", "--help"]
try:
    runpy.run_module("flows.{flow}", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "mlflow", "pyarrow", "pandas", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


class RunTimeImports(ast.NodeVisitor):
    """What a module imports when it runs, in functions too; not what is for the type checker alone."""

    def __init__(self, path: Path) -> None:
        self.found: set[str] = set()
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_If(self, node: ast.If) -> None:
        for child in (
            node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [node.test, *node.body, *node.orelse]
        ):
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        known = {f"{node.module}.{alias.name}" for alias in node.names} & MODULE_NAMES
        self.found |= known or {str(node.module)}


MODULE_NAMES = {module_of(path) for path in MODULES}


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_of(path): RunTimeImports(path).found & MODULE_NAMES for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


STREAMING = [path for path in MODULES if module_of(path).startswith("tasks.streaming.")]


@pytest.mark.parametrize("path", STREAMING, ids=module_of)
def test_the_rooms_of_streaming_know_as_little_as_they_can(path):
    imports = names(imported_by(path), "tasks")
    room = module_of(path).split(".")[2]
    if room == "objects":
        assert imports <= names(imports, *LOWEST, "tasks.aws.codes", "tasks.streaming.objects")
    elif room == "formats":
        assert imports <= names(imports, *LOWEST, "tasks.streaming.formats", "tasks.streaming.manifest")
    elif room == "listing":
        libraries = (f"tasks.streaming.{name}" for name in ("formats", "listing", "manifest", "objects", "progress"))
        assert imports <= names(imports, *LOWEST, *libraries)


STEPS = (
    *("credentials", "data", "evaluation", "registration", "reporting", "prediction"),
    *("training", "benchmark", "watching"),
)
BELOW_STEPS = (
    *(module.removeprefix("tasks.") for module in LOWEST),
    "parameters",
    "facts",
    "policy",
    "sources",
    "wording",
    "usage",
    "runs",
    "ranks",
)
TREES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def room_of(module: str) -> str:
    return module.partition("tasks.")[2].partition(".")[0]


def test_every_module_of_tasks_has_its_floor():
    rooms = {room_of(module) for module in TREES} - {""}
    assert rooms == {*STEPS, *BELOW_STEPS, *(room_of(library) for library in LIBRARIES)}
    assert len([path for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__"]) <= 14


@pytest.mark.parametrize(
    "path", [each for each in MODULES if room_of(module_of(each)) in (*STEPS, *BELOW_STEPS)], ids=module_of
)
def test_no_step_imports_a_step_and_what_stands_below_imports_none(path):
    others = [f"tasks.{step}" for step in STEPS if step != room_of(module_of(path))]
    assert not names(imported_by(path), *others)


UNTYPED = re.compile(r"\b(dict|Mapping)\[str, Any\]")
OF_FILES = {"to_dict", "from_dict", "to_row", "from_row"}  # a fact's form in a file, or a row of it
FOREIGN = {
    ("tasks.learning.checkpoints.Checkpoint", "facts"),  # what its file holds beside tensors
    ("tasks.sources.Sources.storage_options", "return"),  # in fsspec's own words, as wherever storage_options are given
}


def annotations_of(definition: ast.stmt, name: str) -> Iterator[tuple[str, str, str]]:
    """Where, of what and with which type something is defined: parameters and returns, fields, public methods."""
    match definition:
        case ast.FunctionDef(args=given) if definition.name not in OF_FILES:
            for each in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]:
                if each and each.annotation:
                    yield name, each.arg, ast.unparse(each.annotation)
            if definition.returns:
                yield name, "return", ast.unparse(definition.returns)
        case ast.AnnAssign():
            yield name, ast.unparse(definition.target), ast.unparse(definition.annotation)
        case ast.ClassDef():
            for member in definition.body:
                inner = getattr(member, "name", "")
                if inner == "__init__" or not inner.startswith("_"):
                    yield from annotations_of(member, f"{name}.{inner}" if inner else name)


def find_definition(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Where what a module hands on by this name is defined."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name and node in TREES[module].body:
            return f"{module}.{name}", node
        if isinstance(node, ast.ImportFrom) and node.module in TREES and name in {each.name for each in node.names}:
            return find_definition(node.module, name)
    return None


def crossing() -> dict[str, ast.stmt]:
    """The steps, and what flows, steps and runs import from another room."""
    found: dict[str, ast.stmt] = {}
    for module, tree in TREES.items():
        if room_of(module) not in (*STEPS, *BELOW_STEPS) and not module.startswith("flows."):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any("step(" in ast.unparse(d) for d in node.decorator_list):
                found[f"{module}.{node.name}"] = node
            if isinstance(node, ast.ImportFrom) and node.module in TREES and room_of(node.module) != room_of(module):
                found |= dict(filter(None, (find_definition(node.module, each.name) for each in node.names)))
    return found


def test_what_crosses_from_room_to_room_has_a_type():
    defined = crossing()
    assert {"tasks.data.locate_shards", "tasks.facts.Fit", "tasks.runs.lifecycle.tracked"} <= set(defined)
    untyped = [
        f"{place}: {name} is {annotation}"
        for module, definition in defined.items()
        for place, name, annotation in annotations_of(definition, module)
        if UNTYPED.search(annotation) and name != "storage_options" and (place, name) not in FOREIGN
    ]
    assert untyped == []
