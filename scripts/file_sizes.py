"""Print the largest files and functions, and fail where one is over the limit of docs/architecture.md."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70
ROWS = 8


def function_lengths(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]


def main() -> None:
    root = Path("src")
    sources = [path for path in sorted(root.rglob("*")) if path.suffix in {".py", ".cpp", ".h"}]
    files = sorted(((len(p.read_text(encoding="utf-8").splitlines()), str(p)) for p in sources), reverse=True)
    functions = sorted((f for p in sources if p.suffix == ".py" for f in function_lengths(p)), reverse=True)
    for title, rows, limit in (("files", files, MAX_FILE_LINES), ("functions", functions, MAX_FUNCTION_LINES)):
        print(f"largest {title} (limit {limit} lines)")
        print("\n".join(f"  {lines:5d}  {name}" for lines, name in rows[:ROWS]))
    print(f"{len(files)} files, {sum(lines for lines, _ in files)} lines")
    if files[0][0] > MAX_FILE_LINES or functions[0][0] > MAX_FUNCTION_LINES:
        sys.exit("a file or function is over the limit: split it by what it is about")


if __name__ == "__main__":
    main()
