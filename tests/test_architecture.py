"""The layers of docs/architecture.md, checked by parsing imports: they point down, never up."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "tianquan"

LAYERS = {
    "errors": 0,
    "config": 1,
    "request": 1,
    "kernels": 1,
    "backends": 2,
    "quantization": 2,
    "models": 3,
    "processing": 3,
    "engine": 4,
    "checkpoint": 4,
    "text_stream": 5,
    "answer": 5,
    "engine_driver": 5,
    "session": 5,
    "tools": 5,
    "session_file": 5,
    "watch": 5,
    "llm": 5,
    "loading": 5,
    "benchmark": 6,
    "evaluation": 6,
    "calibration": 6,
    "serving": 6,
    "batch": 6,
    "scaling": 6,
    "export": 5,
    "verification": 6,
    "vllm_plugin": 6,
    "training": 5,
    "cli": 7,
    "__main__": 7,
}
# What a layer may import from outside beside the standard library.
OUTSIDE = {
    "processing": {"numpy", "PIL", "av", "jinja2", "tokenizers"},
    "models": {"numpy"},
    "backends": {"numpy", "torch"},
    "quantization": {"numpy"},
    "kernels": {"numpy"},
    "engine": {"numpy", "llguidance"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def top_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            if node.module == "tianquan":
                names |= {f"tianquan.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    name = top_name(path)
    if name == "__init__":
        return
    for module in imported_modules(path):
        if module.startswith("tianquan.") and module != "tianquan.__version__":
            assert LAYERS[module.split(".")[1]] <= LAYERS[name], f"{path} imports {module}"
        elif name in OUTSIDE:
            root = module.split(".")[0]
            assert root in OUTSIDE[name] | set(sys.stdlib_module_names) | {"tianquan"}, f"{path} imports {module}"


def test_no_import_circles():
    """What a module imports, types included, does not import that module, by however many steps."""
    names = {module_name(path): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        pairs = [(node.module or "", alias.name) for node in imports for alias in node.names]
        found = {f"{module}.{part}" if f"{module}.{part}" in names else module for module, part in pairs}
        graph[name] = found & set(names) - {"tianquan"}  # whose names are found when they are first asked for
    assert set(TopologicalSorter(graph).static_order()) == set(names)  # an error names the circle


def test_torch_has_one_border():
    """Training and vLLM's encoders are torch beside the backend; the benchmark's baseline runs the original on it."""
    users = {str(path.relative_to(PACKAGE)) for path in MODULES if "torch" in imported_modules(path)}
    assert {name for name in users if not name.startswith(("training/", "vllm_plugin/"))} == {
        "backends/torch.py",
        "benchmark/baselines.py",
    }


def test_the_web_has_one_border():
    """What the extra `serve` installs is imported in serving/ only."""
    web = {"starlette", "uvicorn", "h11", "pydantic", "multipart", "python_multipart", "anyio"}
    roots = {path: {module.split(".")[0] for module in imported_modules(path)} for path in MODULES}
    assert {top_name(path) for path, names in roots.items() if names & web} == {"serving"}
    for name in ("__init__", "config"):  # `tianquan serve` reads its options before anything of the web is there
        assert not roots[PACKAGE / "serving" / f"{name}.py"] & web


def test_ray_has_one_border():
    """What the extra `ray` installs is imported in scaling/ only."""
    roots = {path: {module.split(".")[0] for module in imported_modules(path)} for path in MODULES}
    assert {top_name(path) for path, names in roots.items() if names & {"ray", "pyarrow"}} == {"scaling"}


def test_gguf_has_one_border():
    users = {str(path.relative_to(PACKAGE)) for path in MODULES if "gguf" in imported_modules(path)}
    assert {name.partition("/")[0] for name in users} == {"export"}


def test_every_module_has_a_layer():
    assert {top_name(path) for path in MODULES} - {"__init__"} == set(LAYERS)


def test_no_vague_file_names():
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & {"utils", "common", "helpers", "misc", "util"}


def test_import_is_light():
    """`import tianquan` and the command line's help load none of the heavy dependencies."""
    code = (
        "import sys, tianquan; print(sorted({'numpy', 'torch', 'av', 'PIL', 'tokenizers', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


NEED_TORCH = {
    f"tianquan.training.{name}"
    for name in (
        "adapters",
        "finetune",
        "module_tree",
        "muon",
        "objective",
        "rounded_weights",
        "state",
        "tensor_file",
        "trainer",
    )
}
NEED_VLLM = {
    f"tianquan.vllm_plugin.{name}"
    for name in ("hf_config", "media_processor", "model", "model_folder", "renderer", "tokenizer", "towers")
}
NEED_GGUF = {f"tianquan.export.{name}" for name in ("gguf_file", "gguf_vocabulary")}
NEED_RAY = {f"tianquan.scaling.{name}" for name in ("batch_pipeline", "cluster", "front", "replica")}


def test_torch_is_never_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"left_out = {sorted(NEED_TORCH | NEED_VLLM | NEED_RAY | NEED_GGUF)}\n"
        "import pkgutil, importlib, tianquan\n"
        "for m in pkgutil.walk_packages(tianquan.__path__, 'tianquan.'):\n"
        "    if not m.name.endswith(('__main__', '_kernels', '.torch', *left_out)): importlib.import_module(m.name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
