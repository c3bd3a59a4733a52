"""The rules between the rooms: imports go down only, libraries stay apart, and `--help` imports nothing heavy."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("tasks.tracking", "tasks.aws", "tasks.streaming", "tasks.learning", "tasks.devices")
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
    assert f"{module}.".startswith(("tasks.tracking.", "deployments.")) or not names(imports, "mlflow")
    library = next((library for library in LIBRARIES if f"{module}.".startswith(f"{library}.")), None)
    if library:
        others = tuple(other for other in LIBRARIES if other != library)
        assert not names(imports, "flows", "deployments", "prefect", *others)
        assert names(imports, "tasks") <= names(imports, library, "tasks.errors")
    elif module.startswith("tasks"):
        assert not names(imports, "flows", "deployments")
        assert module != "tasks.errors" or not imports
    elif module.startswith("flows"):
        assert not names(imports, "deployments")


@pytest.mark.parametrize("flow", sorted(p.stem for p in (ROOT / "flows").glob("*ing.py")))
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
        assert imports <= names(imports, "tasks.errors", "tasks.streaming.objects")
    elif room == "formats":
        assert imports <= names(imports, "tasks.errors", "tasks.streaming.formats", "tasks.streaming.manifest")
    elif room == "listing":
        libraries = (f"tasks.streaming.{name}" for name in ("formats", "listing", "manifest", "objects", "progress"))
        assert imports <= names(imports, "tasks.errors", *libraries)
