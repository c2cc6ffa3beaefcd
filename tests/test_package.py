"""The package as a whole: what it imports, what it exports, and that it runs without its hosts."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.check_wheel import HOSTS, IMPORT_WITHOUT_HOSTS, ROOT, readme_example

BLOCK_HOSTS = f"import sys; sys.modules.update(dict.fromkeys({HOSTS}))\n"

TESTING = ("metaplastic.testing",)
FORBIDDEN = {
    "metaplastic/rules": ("credit", "learner", "metagradient", "training"),
    "metaplastic/networks": ("credit", "learner", "metagradient", "training"),
    "metaplastic/credit": ("rules", "learner", "metagradient", "training"),
}


def run(code: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def executed_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but the bodies of functions and of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from executed_on_import(child)


def imported(nodes: Iterator[ast.AST], path: Path) -> set[str]:
    """The dotted names that the import statements among `nodes`, of the file `path`, bring in."""
    package = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def offenders(folder: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(folder)
        for name in sorted(imported(ast.walk(ast.parse(path.read_text("utf-8"))), path))
        if any(f"{name}.".startswith(f"{module}.") for module in forbidden)
    ]


def test_import_loads_no_host_though_all_are_installed(tmp_path):
    run(IMPORT_WITHOUT_HOSTS, tmp_path)


def test_imports_without_the_hosts(tmp_path):
    run(BLOCK_HOSTS + "import metaplastic", tmp_path)


def test_quickstart_runs_without_the_hosts(tmp_path):
    run(BLOCK_HOSTS + readme_example("quickstart"), tmp_path)


def test_modules_import_only_torch_and_numpy():
    """But for the contracts, which are pytest classes."""
    allowed = sys.stdlib_module_names | {"metaplastic", "torch", "numpy"}
    extras = {
        "testing": {"pytest"},
        "tune": {"optuna"},
        "kernels": {"numba", "triton"},
    }  # imported by those who ask for them
    third_party = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("metaplastic")
        for name in sorted(imported(executed_on_import(ast.parse(path.read_text("utf-8"))), path))
        if name.split(".")[0] not in allowed | extras.get(path.parent.name, set())
    ]
    assert third_party == []


def test_contracts_are_used_by_tests_alone(tmp_path):
    inside = f"{Path('metaplastic', 'testing')}{os.sep}"
    users = [u for u in offenders("metaplastic", TESTING) if not u.startswith(inside)]
    assert users + offenders("tasks", TESTING) + offenders("studies", TESTING) == []
    run(
        "import sys, metaplastic; sys.exit('pytest' in sys.modules or 'optuna' in sys.modules)",
        tmp_path,
    )


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers_import_downwards_only(folder):
    assert sources(folder) != []
    assert offenders(folder, tuple(f"metaplastic.{name}" for name in FORBIDDEN[folder])) == []


def test_library_knows_no_tasks_and_tasks_know_no_studies():
    assert offenders("metaplastic", ("tasks", "studies")) + offenders("tasks", ("studies",)) == []


def undocumented(name: str, value: object) -> Iterator[str]:
    """`name`, and the public methods that a class defines, where they have no docstring."""
    if not (value.__doc__ or "").strip():
        yield name
    for attribute in inspect.classify_class_attrs(value) if inspect.isclass(value) else ():
        ours = attribute.defining_class.__module__.split(".")[0] == "metaplastic"
        if ours and attribute.kind != "data" and not attribute.name.startswith("_"):
            if not inspect.getdoc(getattr(value, attribute.name)):  # finds an inherited one too
                yield f"{name}.{attribute.name}"


def test_public_names_exist_and_are_documented():
    import metaplastic

    names = metaplastic.__all__
    assert [u for name in names for u in undocumented(name, getattr(metaplastic, name))] == []
