"""The shape of the package: who may import whom, and what no file may hold."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "vidup"
FILES = sorted(PACKAGE.rglob("*.py"))

ROWS = [
    {"errors", "frame"},
    {"prefetch", "config", "codecs", "hdr", "progress", "color", "tiling", "noise", "metrics", "temporal"},
    {
        "interlace",
        "reader",
        "probing",
        "encoder",
        "conversion",
        "streams",
        "writer",
        "engines",
        "segments",
        "crew",
        "execute",
    },
    {"upscaler"},
    {"planning"},
    {"worker"},
    {"likeness", "fingerprint", "proof", "stills"},
    {"job"},
    {"compare", "stopwatch", "bench"},
    {"cli"},
    {"__main__"},
]
WITHIN_A_ROW = {
    ("reader", "interlace"),
    ("probing", "reader"),
    ("probing", "interlace"),
    ("encoder", "reader"),
    ("conversion", "reader"),
    ("streams", "reader"),
    ("streams", "conversion"),
    ("writer", "conversion"),
    ("writer", "reader"),
    ("writer", "encoder"),
    ("writer", "streams"),
    ("execute", "crew"),
    ("proof", "likeness"),
    ("proof", "fingerprint"),
    ("bench", "stopwatch"),
}
ONLY_IN = {
    "av": {"interlace", "reader", "probing", "encoder", "conversion", "streams", "writer", "mini"},
    "diffusers": {"engines", "mini"},
    "transformers": {"engines", "mini"},
    "spandrel": {"engines"},
    "ray": {"crew"},
}
MOST_LINES = 420


def room(path: Path) -> str:
    """The file's name, or that of the folder it is in: ``engines``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def row(name: str) -> int:
    rows = [index for index, names in enumerate(ROWS) if name in names]
    assert rows, f"{name} has no place in the map of the code"
    return rows[0]


def imports(path: Path) -> list[str]:
    """All modules that a file imports, anywhere in it; ``from vidup import color`` counts as ``vidup.color``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            found += [f"vidup.{alias.name}" for alias in node.names] if module == "vidup" else [module]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path: Path):
    me = room(path)
    for module in imports(path):
        top, _, rest = module.partition(".")
        assert me in ONLY_IN.get(top, {me}), f"{path.name} imports {module}"
        other = rest.partition(".")[0]
        if top != "vidup" or not other or me in ("__init__", "mini") or other in (me, "__version__"):
            continue
        assert other != "mini", f"{path.name} imports {module}: the package must not need the training code"
        allowed = row(other) < row(me) or (me, other) in WITHIN_A_ROW
        assert allowed, f"{path.name} imports {module}, which is not above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_size_and_dangers(path: Path):
    me, text = room(path), path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in ("eval", "exec", "os.system"), f"{path.name}:{node.lineno} calls {name}"
            assert "shell" not in given, f"{path.name}:{node.lineno} runs a shell"
            if name == "torch.load":
                assert given.get("weights_only") == "True", f"{path.name}:{node.lineno} loads pickles"
                assert me in ("mini", "engines"), f"{path.name}:{node.lineno} loads weights"
    assert not {"pickle", "marshal", "shelve", "dill"} & {module.partition(".")[0] for module in imports(path)}
