"""Every fault in one line: what was asked for, what is wrong, the way out. A traceback is a bug."""

import re
import sys
from contextlib import contextmanager
from pathlib import Path

UNREACHABLE = "the hub cannot be reached and the files are not in the local cache; "
UNREACHABLE += "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder"
HUB_FAULTS = {
    "GatedRepoError": "is gated; accept its terms on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "no such repository on the hub, or a private one; check its name, or `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision; check --revision (such as step1000 or main)",
    "RemoteEntryNotFoundError": "the repository has no such file",
}


def from_hub(fault):
    """Whether huggingface_hub, or the HTTP client beneath it, raised this."""
    return type(fault).__module__.startswith(("huggingface_hub", "httpx", "httpcore"))


def hub_or_network(fault):
    return from_hub(fault) or isinstance(fault, OSError)


def one_line(fault):
    """An exception as one line."""
    name, said = type(fault).__name__, " ".join(str(fault).split())
    if from_hub(fault):
        if name in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"):
            return UNREACHABLE
        asked = re.search(r"https?://[^\s'\")]+", said)
        where = asked[0].rstrip(".") if asked else "the hub"
        return f"{where}: {HUB_FAULTS.get(name, f'{said[:200]}; repeat the command')}"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename or ''}: {fault.strerror}".lstrip(": ")
    return said or name


@contextmanager
def memory_explained():
    """Says what to try where memory ran out in the block: RuntimeError in place of the several ways to say so."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        said = one_line(fault)
        signs = ("allocate memory", "create a primitive", "out of memory")  # torch's, oneDNN's, CUDA's
        if not isinstance(fault, MemoryError) and not any(sign in said for sign in signs):
            raise
        way_out = "try a smaller --micro-batch-size or --activation-checkpointing, with --resume if the run had begun"
        raise RuntimeError(f"out of memory ({said[:100]}); {way_out}") from None


def run_command(main, program=None):
    """Runs the main() of a command line, called `program`. Bad input, which raises ValueError or OSError, is one line
    and exit code 2; a failure on the way (RuntimeError, MemoryError) one line and exit code 1."""
    program = program or Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt as stopped:
        print(f"{program}: stopped; {str(stopped) or 'the same command begins again'}", file=sys.stderr)
        sys.exit(130)
    except Exception as fault:
        bad_input = isinstance(fault, ValueError) or hub_or_network(fault)
        if not bad_input and not isinstance(fault, (RuntimeError, MemoryError)):
            raise  # a bug, of which the traceback helps
        print(f"{program}: {'' if bad_input else 'failed: '}{one_line(fault)}", file=sys.stderr)
        sys.exit(2 if bad_input else 1)
