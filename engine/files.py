"""Files that are whole or absent, locks that no killed process leaves behind, and what a JSON file may hold."""

import contextlib
import errno
import hashlib
import json
import os
import re
import zlib
from pathlib import Path

import filelock
from safetensors import SafetensorError

# What Python and safetensors raise for contents that they cannot read, or that are of another kind.
BAD_CONTENT = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, EOFError)
BAD_CONTENT += (zlib.error, SafetensorError)
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "an object"}


def value_of(content, name, kind=int, low=0, high=10**15):
    """content[name] of a JSON object. ValueError unless it is of a kind (float admits whole numbers) and, a number,
    within its limits."""
    value = content.get(name)
    number, right = kind in (int, float), type(value) is kind or (kind is float and type(value) is int)
    if not right or (number and not low <= value <= high):
        limits = f" from {low:g} to {high:g}" if number else ""
        raise ValueError(f"{name} is {value!r:.60}; expected {KINDS[kind]}{limits}")
    return value


@contextlib.contextmanager
def blaming(file, way_out="restore it or choose another folder"):
    """ValueError with the file and the way out, in place of what its contents raise in the block. An OSError is no
    fault of the contents; it names the file and what the system refused."""
    try:
        yield
    except OSError as fault:
        if fault.filename is None:  # of reading or mapping a file that is open
            raise OSError(fault.errno or errno.EIO, fault.strerror or str(fault), str(file)) from None
        raise
    except BAD_CONTENT as fault:
        words = f"no {fault}" if isinstance(fault, KeyError) else fault
        raise ValueError(f"{file}: {words}; {way_out}") from None


def open_file(path):
    """A file, open to read bytes. ValueError for a pipe or a device, which may never end, and for a Git LFS pointer."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: not an ordinary file")
    file = open(path, "rb")
    with blaming(path, "fetch it with `git lfs pull`"):
        if file.peek(64).startswith(b"version https://git-lfs"):
            raise ValueError("a Git LFS pointer instead of the file")
    return file


def read_json(path, way_out="restore it or choose another folder", names=()):
    """The object that a JSON file holds, with these names in it. ValueError or OSError names the file and the fault."""
    if not Path(path).exists():
        raise FileNotFoundError(errno.ENOENT, f"missing; {way_out}", str(path))
    with open_file(path) as file, blaming(path, way_out):
        content = json.loads(file.read().decode())
        if not isinstance(content, dict):
            raise ValueError("holds no JSON object")
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"no {missing[0]}")
    return content


def write_whole(path, content):
    """Writes a file that is there whole or not at all: under a hidden name, then renamed."""
    hidden = Path(path).with_name(f".{Path(path).name}")
    hidden.write_bytes(content)
    sync(hidden)
    os.replace(hidden, path)


def to_json(content):
    """The bytes of a JSON file that people may read."""
    return (json.dumps(content, indent=2) + "\n").encode()


def sync(path):
    """Returns when a file is on the disk, so that a power cut cannot empty it after a rename."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    with open_file(path) as file, blaming(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def locked(path, message=None):
    """A lock file, held in a `with` block; the system drops the lock of a killed process. Where another process holds
    it: ValueError with the message; without a message it waits."""
    try:
        return filelock.FileLock(path, blocking=message is None).acquire()
    except filelock.Timeout:
        raise ValueError(message) from None
    except OSError as fault:
        if fault.filename:  # which could not be made
            raise
        raise ValueError(f"{path}: {fault.strerror}; choose a folder whose file system has locks (flock)") from None


# What moves a terminal's cursor or changes its state, breaks a line, or reverses text; and halves of a character.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text, keep=""):
    """A text with its control characters, but for those in `keep`, as escapes."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def cores():
    """How many cores this process may use, which taskset and job schedulers limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1
