"""The rules between the rooms: imports go down only, libraries stay apart, and `--help` imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("tasks.aws", "tasks.streaming", "tasks.learning", "tasks.devices")
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
    library = next((library for library in LIBRARIES if f"{module}.".startswith(f"{library}.")), None)
    if library:
        others = tuple(other for other in LIBRARIES if other != library)
        assert not names(imports, "flows", "deployments", "prefect", *others)
        assert names(imports, "tasks") <= names(imports, library, "tasks.errors")
        assert module == "tasks.tracking.client" or not names(imports, "mlflow")
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
