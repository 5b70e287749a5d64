"""The house: which room imports which, also inside functions; how large files, functions and classes are."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

LESSON = ("schedule", "model", "data", "eval", "train")
# What each room may import of ours. Arrows run downwards only, so there is no circle, hidden or not.
ROOMS = {
    "schedule": set(),
    "engine": set(),
    "model": {"engine"},
    "corpora": {"engine"},
    "data": {"corpora", "engine"},
    "eval": {"data", "model", "corpora", "engine"},
    "train": {"eval", "data", "model", "schedule", "corpora", "engine"},
    "paper": {"train", "eval", "data", "model", "schedule", "corpora", "engine"},
}
# Within a room too: each file may import those before it.
FLOORS = {
    "engine": "kernels files config faults flags processes weights checkpoints log figures machine folder plan",
    "corpora": "tokenizer readers hub prepare texts",
    "paper": "statistics jobs arms figures tables claims experiments lengths __main__",
}
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}


def sources():
    """{file: its syntax tree} of everything but the tests."""
    files = [ROOT / f"{name}.py" for name in LESSON] + [file for room in FLOORS for file in (ROOT / room).glob("*.py")]
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


def imports(tree):
    """Every module that is imported, anywhere in a file: "engine.files" of `from engine import files` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "name the room"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def room_of(file):
    return file.stem if file.parent == ROOT else file.parent.name


def test_the_rooms_are_these():
    found = {p.stem for p in ROOT.glob("*.py")} | {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert found == ROOMS.keys()
    for room, floors in FLOORS.items():
        assert {p.stem for p in (ROOT / room).glob("*.py")} == {*floors.split(), "__init__"}


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_run_downwards_only(file):
    room, tree = room_of(file), sources()[file]
    ours = {name for name in imports(tree) if name.partition(".")[0] in ROOMS}
    assert {name.partition(".")[0] for name in ours} - {room} <= ROOMS[room]
    if room in FLOORS and file.stem != "__init__":
        floors = FLOORS[room].split()
        beneath = {name.split(".")[1] for name in ours if name.startswith(f"{room}.")} & {*floors}
        assert beneath <= {*floors[: floors.index(file.stem)]}


def test_nothing_of_one_system_alone_is_imported():
    for file, tree in sources().items():
        at_the_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {name.partition(".")[0] for name in imports(at_the_top)} & POSIX_ONLY, file


def test_a_reader_can_hold_it():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    assert sum(lines[ROOT / f"{name}.py"] for name in LESSON) <= 1439
    assert sum(lines.values()) <= 5031
    assert max(lines.values()) <= 450, lines
    for file, tree in sources().items():
        for node in ast.walk(tree):
            limit = {ast.FunctionDef: 50, ast.ClassDef: 100}.get(type(node))
            if limit:
                assert node.end_lineno - node.lineno < limit, f"{Path(file).name}: {node.name}"
