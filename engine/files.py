"""Files that are whole or absent, locks that no killed process leaves behind, and what a JSON file may hold."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import filelock

# ---------------------------------------------------------------- what a file may hold


@dataclass(frozen=True)
class Field:
    """What one value may be: its type (float admits whole numbers), its range or the values to choose from."""

    type: type
    low: float = -math.inf
    high: float = math.inf
    among: Collection = ()
    optional: bool = False  # None will do
    nan: bool = False  # so will a number that is none

    def __str__(self):
        if self.among:
            return f"one of {', '.join(map(str, self.among))}"
        if self.type in (int, float):
            kind = "a whole number" if self.type is int else "a number"
            return f"{kind} from {self.low:g} to {self.high:g}"
        return {bool: "true or false", str: "text", dict: "an object", list: "a list"}[self.type]

    def admits(self, value):
        if value is None:
            return self.optional
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            return False
        if self.among:
            return value in self.among
        return self.type not in (int, float) or self.low <= value <= self.high or (self.nan and value != value)


def count(low=0, high=10**15, **options):
    """A Field for a whole number."""
    return Field(int, low, high, **options)


def check_value(value, field, name):
    """Raises ValueError, naming the value, if the field does not admit it."""
    if not field.admits(value):
        raise ValueError(f"{name} is {value!r:.60}; expected {field}")


def check_fields(content, table, where):
    """Raises ValueError for the first value in `content` that is not as `table` says: {name: Field, or a table}.

    A name that is missing counts as None. What the table does not name may be anything."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds no JSON object")
    for name, field in table.items():
        if isinstance(field, dict):
            check_fields(content.get(name), field, f"{where}: {name}")
        else:
            check_value(content.get(name), field, f"{where}: {name}")


def read_json(file, table=None, way_out="restore it or choose another folder"):
    """The contents of a JSON file, checked against a table. ValueError or OSError names the file and the fault."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{file}: not JSON ({fault}); {way_out}") from None
    try:
        check_fields(content, table or {}, file)
    except ValueError as fault:
        raise ValueError(f"{fault}; {way_out}") from None
    return content


KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def value_of(content, name, kind=int, low=0, high=10**15):
    """content[name] of a JSON object, if it is of a kind (float admits whole numbers) and, a number, within its limits.

    ValueError names the field."""
    value = content.get(name)
    number, right = kind in (int, float), type(value) is kind or (kind is float and type(value) is int)
    if not right or (number and not low <= value <= high):
        limits = f" from {low:g} to {high:g}" if number else ""
        raise ValueError(f"{name} is {value!r:.60}; expected {KINDS[kind]}{limits}")
    return value


@contextlib.contextmanager
def blaming(file, way_out="restore it or choose another folder"):
    """In place of what the contents of a file raise in the block: ValueError that names the file and the way out."""
    try:
        yield
    except KeyError as fault:
        raise ValueError(f"{file}: no {fault}; {way_out}") from None
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as fault:
        raise ValueError(f"{file}: {fault}; {way_out}") from None


# ---------------------------------------------------------------- durable files


def write_file(path, content):
    """Writes bytes, and returns when they are on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path, content):
    """Writes a file that is there whole or not at all: under a hidden name, made durable, then renamed."""
    hidden = Path(path).with_name(f".{Path(path).name}")
    write_file(hidden, content)
    os.replace(hidden, path)
    sync_folder(Path(path).parent)


def to_json(content):
    """The bytes of a JSON file that people may read."""
    return (json.dumps(content, indent=2) + "\n").encode()


def sync_file(path):
    """Makes a file durable that another library has written."""
    with open(path, "r+b") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def sync_folder(folder):
    """Makes the names in a folder durable: a rename is on the disk only when its folder is."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder; its renames are durable by themselves
        return
    os.fsync(handle)
    os.close(handle)


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    if not Path(path).is_file():  # a pipe or a device would never end
        raise ValueError(f"no file {Path(path).name}")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_hash(path, blocks=16, size=2**16):
    """SHA-256 of 16 evenly spread blocks of a file: notices another file of the same size in milliseconds."""
    digest, length = hashlib.sha256(), Path(path).stat().st_size
    with open(path, "rb") as file:
        for block in range(blocks):
            file.seek(max(0, length - size) * block // (blocks - 1))
            digest.update(file.read(size))
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path, message=None):
    """Holds a lock file while the block runs. Where another process holds it: ValueError with the message; without a
    message it waits.

    The system drops the lock with its process, so a killed run leaves nothing to clean up."""
    try:
        lock = filelock.FileLock(path, blocking=message is None)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(message) from None
    try:
        yield
    finally:
        lock.release()
