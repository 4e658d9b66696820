"""The shape of the package: who may import whom, and what no file may hold."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vidup"
FILES = sorted(PACKAGE.rglob("*.py"))

WINGS = {
    "errors": set(),
    "frame": {"errors"},
    "prefetch": set(),
    "presets": {"errors"},
    "values": {"errors"},
    "config": {"errors", "presets", "values"},
    "options": {"errors", "config", "values"},
    "picture": {"errors", "frame", "config"},
    "engines": {"errors", "config", "picture"},
    "media": {"errors", "frame", "config", "picture"},
    "paths": {"errors", "config", "media"},
    "upscaler": {"errors", "frame", "config", "prefetch", "picture", "engines"},
    "proof": {"errors", "frame", "config", "prefetch", "picture", "media"},
    "comparison": {"errors", "frame", "picture", "engines", "media"},
    "report": {"errors", "frame", "config", "picture", "engines", "media", "comparison"},
    "job": {
        "errors",
        "frame",
        "config",
        "paths",
        "prefetch",
        "picture",
        "engines",
        "media",
        "upscaler",
        "proof",
        "report",
    },
    "bench": {
        "errors",
        "frame",
        "config",
        "prefetch",
        "picture",
        "engines",
        "media",
        "upscaler",
        "proof",
        "job",
        "options",
    },
    "doctor": {"errors", "engines", "media"},
    "vapoursynth": {"errors", "config", "engines", "upscaler"},
    "terminal": {"errors"},
    "ui": {"errors", "options", "paths", "values", "terminal"},
    "arguments": {"config", "options", "presets", "bench"},
    "cli": {
        "paths",
        "errors",
        "config",
        "options",
        "presets",
        "arguments",
        "terminal",
        "engines",
        "media",
        "upscaler",
        "proof",
        "job",
        "comparison",
        "report",
        "bench",
        "doctor",
        "ui",
    },
    "__main__": {"cli"},
}
"""What each wing, and each file beside them, may import."""

AT_A_CALL = {"config": {"engines"}, "frame": {"picture", "media"}, "upscaler": {"job", "proof"}, "ui": {"job"}}
"""What a function alone may import, when it is called, or a type checker: methods of public classes that stand on what
is above them; types of what public functions return."""


def files_of_wings() -> dict[str, list[str]]:
    """The files of each wing in the order of the map in `vidup/__init__.py`."""
    found: dict[str, list[str]] = {}
    wing = ""
    for line in (
        ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
    ).splitlines():
        names = re.split("  +", line.strip())[0].split(", ")
        if re.match(" {4}\\w", line) and names[-1].endswith("/"):
            wing = names[-1].removesuffix("/")
            found[wing] = []
        elif re.match(" {8}\\w", line):
            found[wing] += names
    return found


INSIDE = files_of_wings()
"""Each file imports only from those before it, and the wing's own `__init__` stands after them."""

ONLY_IN = {
    "av": {"media", "mini"},
    "diffusers": {"engines", "mini"},
    "transformers": {"engines", "mini"},
    "spandrel": {"engines"},
    "cv2": {"engines"},
    "ray": {"job"},
    "vapoursynth": {"vapoursynth"},
    "starlette": {"ui"},
    "uvicorn": {"ui"},
}
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 8


def room(path: Path) -> str:
    """The file's name, or that of the folder it is in: ``engines``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> list[str]:
    """All modules that a file imports, anywhere in it; ``from vidup import color`` counts as ``vidup.color``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            whole = module == "vidup" or module.removeprefix("vidup.") in INSIDE
            found += [f"{module}.{alias.name}" for alias in node.names] if whole else [module]
    return found


def at_once(path: Path) -> set[str]:
    """The modules that are imported with a file: not in a function, nor for a type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path: Path):
    me, inside = room(path), path.stem
    for module in imports(path):
        top, *rest = module.split(".")
        assert me in ONLY_IN.get(top, {me}), f"{path.name} imports {module}"
        if top != "vidup" or not rest or me in ("__init__", "mini") or rest[0] == "__version__":
            continue
        lazily = AT_A_CALL.get(me, set()) if module not in at_once(path) else set()
        assert rest[0] in {me, *WINGS[me], *lazily}, f"{path.name} imports {module}, which is not below it"
        order = INSIDE.get(me, [])
        # A name that is no file is one of the wing's own.
        if rest[0] == me and len(rest) > 1 and inside != "__init__" and rest[1] in order:
            assert order.index(rest[1]) < order.index(inside), f"{path.name} imports {module}, which is not above it"


def test_the_map_names_every_file():
    assert INSIDE.keys() == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"mini"}
    for wing, files in INSIDE.items():
        assert sorted([*files, "__init__"]) == sorted(path.stem for path in (PACKAGE / wing).glob("*.py")), wing
    wings = {room(path) for path in FILES} - {"__init__", "mini"}
    assert wings == WINGS.keys()


def test_what_is_imported_is_installed_with_it():
    """A dependency that only the tests have is missed by whoever has the plain install."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(
            line
            for name in ("checkpoint", "ray", "vapoursynth", "ui")
            for line in project["optional-dependencies"][name]
        ),
    ]
    declared = {re.split("[<>=]", line)[0] for line in wanted}
    names = packages_distributions()
    for path in FILES:
        for module in imports(path):
            top = module.partition(".")[0]
            if top != "vidup" and top not in sys.stdlib_module_names:
                found = {name.lower().replace("_", "-") for name in names.get(top, [top])}
                assert found & declared, f"{path.name} imports {top}, which no dependency brings"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_size_and_dangers(path: Path):
    me, text = room(path), path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{path.name}: {node.name} has {lines} lines"
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(given) <= MOST_PARAMETERS, f"{path.name}: {node.name} has {len(given)} parameters"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in ("eval", "exec", "os.system"), f"{path.name}:{node.lineno} calls {name}"
            assert "shell" not in given, f"{path.name}:{node.lineno} runs a shell"
            if name == "torch.load":
                assert given.get("weights_only") == "True", f"{path.name}:{node.lineno} loads pickles"
                assert me in ("mini", "engines"), f"{path.name}:{node.lineno} loads weights"
    assert not {"pickle", "marshal", "shelve", "dill"} & {module.partition(".")[0] for module in imports(path)}


HEAVY = {"diffusers", "transformers", "accelerate", "huggingface_hub", "spandrel", "torchvision", "ray", "skimage"}


def module_level(path: Path) -> set[str]:
    """What comes with a file: the modules that it imports outside of functions and of what only types need."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_a_job_without_a_diffusion_model_imports_none_of_its_libraries():
    """They take longer to import than torch does."""
    left = ["vidup.cli", "vidup.job", "vidup.upscaler", "vidup.engines.interpolate", "vidup.engines.checkpoint"]
    seen: set[str] = set()
    while left:
        name = left.pop()
        path = PACKAGE.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        imported = module_level(path)
        heavy = {module.partition(".")[0] for module in imported} & HEAVY
        assert not heavy, f"{name} imports {', '.join(sorted(heavy))}"
        left += [module for module in imported if module.partition(".")[0] == "vidup"]
        left.append(name.rpartition(".")[0])
    assert {"vidup.job.worker", "vidup.engines.planner", "vidup.proof.pictures"} <= seen


def test_every_dependency_names_the_lowest_version_that_does():
    """Which `.ci/lowest` installs: exact releases, so that what is declared is what is tested."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *extras["checkpoint"], *extras["ui"]):
        assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*(,<\d+)?", line), line
