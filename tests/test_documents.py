"""What README and CONTRIBUTING say is so: the examples run, the hook calls the checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.generator import write_data

ROOT = Path(__file__).parents[1]


@pytest.fixture
def printed(tmp_path):
    """What the README's section on the stream alone prints when it runs on 5,000 generated rows."""
    write_data(tmp_path / "data", 5000)
    section = (ROOT / "README.md").read_text().split("## The stream alone\n")[1].split("\n## ")[0]
    example = "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))
    assert example.count("s3://bucket/path") == 1
    example = example.replace("s3://bucket/path", f"{tmp_path}/data/csv/dev")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", f"import torch; torch.manual_seed(0)\n{example}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_examples_of_the_stream_run(printed):
    assert "5000 rows of fareamount_double, origin_block_latitude_double, " in printed
    assert re.search(r"mean of fareamount_double: \d+\.\d\d\n", printed)
    left = [float(text) for text in re.findall(r"iteration \d+: ([\d.]+) of the variance is left", printed)]
    assert len(left) == 4
    assert left[-1] < left[0] < 1


def test_the_readme_begins_with_six_lines_of_the_stream_that_run_and_four_of_the_model(tmp_path):
    stream, model = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text().split("\n## ")[0], re.S)
    assert [len(list(filter(None, lines.splitlines()))) for lines in (stream, model)] == [6, 4]
    write_data(tmp_path / "data", 5000)
    example = stream.replace("s3://bucket/path", f"{tmp_path}/data/csv/dev")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.fullmatch(r"mean of fareamount_double: \d+\.\d\d\n", done.stdout), done.stderr


def test_every_figure_of_the_readmes_table_stands_in_the_results():
    table = (ROOT / "README.md").read_text().split("| instead of |")[1].split("\n\n")[0]
    rows = [row.split("|")[3] for row in table.splitlines()[2:]]
    results = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text()
    figures = re.findall(r"\d+\.\d+", "".join(rows))
    assert len(rows) == 4 and len(figures) >= 7
    assert [figure for figure in figures if not re.search(rf"\| \**{figure}\** \|", results)] == []


@pytest.mark.parametrize(("check", "commits"), [("true", 1), ("false", 0)])
def test_the_hook_lets_a_commit_pass_where_the_checks_do(check, commits, tmp_path):
    shutil.copytree(ROOT / ".githooks", tmp_path / ".githooks")
    (tmp_path / "Makefile").write_text(f"check:\n\t{check}\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "core.hooksPath=.githooks")
    for words in (["init"], ["add", "."], [*identity, "commit", "-m", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, capture_output=True)
    log = subprocess.run(["git", "log", "--oneline"], cwd=tmp_path, capture_output=True, text=True)
    assert len(log.stdout.splitlines()) == commits


def test_the_readme_leads_to_the_operations_page():
    assert "](deployments/README.md)" in (ROOT / "README.md").read_text().split("\n## ")[0]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "deployments/README.md"])
def test_what_the_documents_link_to_is_there(name):
    document = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert links
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_contributing_names_every_package_and_module_beside_the_steps():
    picture = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    names = {path.stem for path in (ROOT / "tasks").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {name for name in names if not name.startswith(("_", "py"))} <= set(re.findall(r"\w+", picture))


def test_every_promise_under_a_fault_has_its_test():
    section = (ROOT / "deployments" / "README.md").read_text().split("## What is promised under which fault\n")[1]
    rows = [row.split(" | ") for row in section.split("\n## ")[0].splitlines() if row.startswith("| ")][1:]
    promises = [row for row in rows if not row[0].startswith("| **")]
    assert promises
    for _, promise, test in promises:
        linked = re.fullmatch(r"\[(\w+)\]\(\.\./(tests/\w+\.py)\) \|", test)
        assert promise and linked, test
        name, path = linked.groups()
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
