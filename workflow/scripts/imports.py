"""Which modules of the project a script imports, directly and through others.

They are inputs of the script's rule: an edit of any of them reruns the stage.
"""

from __future__ import annotations

import ast
from pathlib import Path


def imported(project: Path, name: str) -> list[Path]:
    """Return the modules that `workflow/scripts/{name}` imports at any depth, itself excluded, in alphabetical order.

    Args:
        project: the folder of the Snakefile.
    """
    script = project / "workflow" / "scripts" / name
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        for module in _imported_names(waiting.pop()):
            for folder in (script.parent, project):
                path = folder.joinpath(*module.split(".")).with_suffix(".py")
                if path.is_file() and path not in found:
                    found.add(path)
                    waiting.append(path)
    return sorted(found - {script})


def _imported_names(path: Path) -> list[str]:
    """Names of the modules in every import statement of a file."""
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
