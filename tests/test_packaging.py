"""What an installation of the plugin contains and requires."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions

from conftest import REPOSITORY

import fairseq_prefix

PACKAGE = REPOSITORY / "fairseq_prefix"


def declared(name: str):
    """What setup.py passes to `setup` under this name."""
    calls = [node for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text())) if isinstance(node, ast.Call)]
    return next(ast.literal_eval(part.value) for call in calls for part in call.keywords if part.arg == name)


def normal(requirement: str) -> str:
    """The name of a package as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def third_party(nodes: list[ast.AST]) -> set[str]:
    """Top-level modules that these nodes import, other than the standard library's and the plugin's own."""
    imports = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imports += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in imports} - set(sys.stdlib_module_names) - {"fairseq_prefix"}


def test_every_import_is_declared():
    """A function may import a package that an extra installs."""
    required = {normal(name) for name in declared("install_requires")}
    optional = {normal(name) for kind, names in declared("extras_require").items() if kind != "test" for name in names}
    packages = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        always = third_party(tree.body)
        for module in third_party([*ast.walk(tree)]):
            allowed = required if module in always else required | optional
            assert allowed & {normal(name) for name in packages[module]}, (
                f"{path} imports {module}; setup.py does not declare it"
            )


def test_the_wheel_holds_every_module_and_the_licence(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(PACKAGE, clone / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, clone / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path]
    subprocess.run([*pip, clone], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    modules = {path.relative_to(REPOSITORY).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("LICENSE") for name in names)
    assert f"\nVersion: {fairseq_prefix.__version__}\n" in metadata and "\nLicense: MIT\n" in metadata
