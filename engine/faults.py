"""Every fault in one line: what was asked for, what is wrong, the way out. A traceback is a bug."""

import errno
import os
import shlex
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from engine.files import printable


def hub_or_network(fault):
    """Whether the system raised this, or huggingface_hub or anything that it called, such as its HTTP client."""
    frames = traceback.extract_tb(fault.__traceback__)
    return isinstance(fault, OSError) or any("huggingface_hub" in Path(frame.filename).parts for frame in frames)


def disk_full(fault):
    """Whether a disk or a quota is full. safetensors says so in words alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(fault, "errno", None) in numbers or any(f"os error {n})" in str(fault) for n in numbers)


@contextmanager
def saving(out):
    """RuntimeError in place of what the system raises in a block that writes to the run in `out`."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        way_out = f"{'make room, then' if disk_full(fault) else 'resume with'}: {resume_command(out)}"
        raise RuntimeError(f"could not save {out}: {one_line(fault)}; {way_out}") from None


def resume_command(out):
    """The command that goes on with the run in a folder."""
    return f"python train.py --resume {shlex.quote(str(out))}"


def one_line(fault):
    """An exception as one line."""
    if isinstance(fault, OSError) and fault.strerror:
        return printable(f"{fault.filename or ''}: {fault.strerror}".lstrip(": "))
    return printable(" ".join(str(fault).split()) or type(fault).__name__)


@contextmanager
def explained():
    """RuntimeError that says what to try, where a block runs out of memory, or torch.compile fails in it."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        text = one_line(fault)
        if type(fault).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise RuntimeError(f"--compile does not work here ({text[:200]}); leave it out") from None
        signs = ("allocate memory", "create a primitive", "out of memory")  # torch's, oneDNN's, CUDA's
        if not isinstance(fault, MemoryError) and not any(sign in text for sign in signs):
            raise
        way_out = "try a smaller --micro-batch-size or --activation-checkpointing, with --resume if the run had begun"
        raise RuntimeError(f"out of memory ({text[:100]}); {way_out}") from None


def run_command(main, program=None):
    """Runs the main() of a command line. Bad input (ValueError, OSError) is one line and exit code 2; a failure on the
    way (RuntimeError, MemoryError) one line and 1; Ctrl-C one line and 130; a standard output that closed or filled up
    1, in silence."""
    program = program or Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: stopped; the same command begins again", file=sys.stderr)
        sys.exit(130)
    except Exception as fault:
        bad_input = isinstance(fault, ValueError) or (hub_or_network(fault) and not disk_full(fault))
        if not bad_input and not isinstance(fault, (RuntimeError, MemoryError, OSError)):
            raise  # a bug, of which the traceback helps
        print(f"{program}: {'' if bad_input else 'failed: '}{one_line(fault)}", file=sys.stderr)
        sys.exit(2 if bad_input else 1)
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            sys.stdout = open(os.devnull, "w")
            sys.exit(1)
