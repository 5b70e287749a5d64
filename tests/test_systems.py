"""Systems that these tests do not run on: what only POSIX has is taken away, the rules of Windows for open files are
imitated, and the locale knows no UTF-8."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# The way of a first command, in one process: prepare, pre-train, continue, stop, go on, measure, draw.
WALK = """
import sys, warnings
sys.path.insert(0, ROOT)
ours = "(data|eval|train|model|schedule|corpora|engine|paper)"
warnings.filterwarnings("error", category=EncodingWarning, module=ours)
import data, eval, train
import paper.__main__
from engine.faults import run_command

small = "--model nano --context 32 --batch-size 4 --eval-tokens 128 --device cpu --precision fp32".split()
walk = [
    (data, "old a.jsonl notes --tokenizer bytes --val-share 0.2"),
    (data, "new b.jsonl --tokenizer bytes --val-share 0.2 --processes 2"),
    (train, "--upstream old --downstream new --upstream-tokens 1280 --tokens 2560 --stop-tokens 1280 --out OUT"),
    (train, "--resume OUT --stop-tokens 2560 --save-every 1 --keep 1"),
    (eval, "perplexity OUT --data old new --device cpu"),
    (eval, "sample OUT --tokens 9 --temperature 9 --device cpu"),
    (eval, "plot OUT --out OUT.svg"),
    (paper.__main__, "pack OUT --out OUT.jsonl"),
    (paper.__main__, "claims OUT.jsonl"),
]
for program, words in walk:
    words = [word.replace("OUT", sys.argv[1]) for word in words.split()]
    sys.argv[0] = program.__name__
    run_command(lambda: program.main(words + (small if "--init" in words or "--upstream" in words else [])))
"""

# On Windows these do not exist, a folder cannot be opened, only what may be written can be made durable, and nothing
# that is open or mapped can be renamed, replaced or removed.
WINDOWS = """
import os, signal, sys
import torch, numpy, tiktoken, zstandard, tqdm, safetensors.torch, matplotlib.figure, matplotlib.backends.backend_svg
import matplotlib.backends.backend_agg, multiprocessing, subprocess, tempfile, torch.utils.checkpoint, torch.distributed

for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios"):
    sys.modules[name] = None
kept = {"open": os.open, "fsync": os.fsync, "replace": os.replace, "unlink": os.unlink, "stat": os.stat}
for name in ("fork", "geteuid", "getuid", "getpgid", "killpg", "mkfifo", "statvfs", "uname", "chown"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "pthread_sigmask", "setitimer"):
    delattr(signal, name)

def opened(path, flags, *rest, **named):
    if os.path.isdir(path) and not named and not flags & os.O_DIRECTORY:
        raise PermissionError(13, "Permission denied", str(path))
    return kept["open"](path, flags, *rest, **named)

def fsync(handle):
    if open(f"/proc/self/fdinfo/{handle}").read().split()[3][-1] == "0":  # open for reading alone
        raise OSError(9, "Bad file descriptor")
    kept["fsync"](handle)

def in_use():
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return {*links, *(line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps"))}

def refuse(path):
    path = os.path.realpath(path)
    for used in in_use():
        if used == path or used.startswith(path + os.sep):
            raise PermissionError(13, "The process cannot access the file because it is being used", used)

def replace(old, new, **named):
    refuse(old)
    refuse(new)
    kept["replace"](old, new)

def unlink(path, *rest, dir_fd=None):
    if dir_fd is None:
        refuse(path)
    kept["unlink"](path, *rest, dir_fd=dir_fd)

os.open, os.fsync, os.replace, os.unlink, os.remove = opened, fsync, replace, unlink, unlink
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="imitates another system by means of Linux")
@pytest.mark.parametrize("system", ["windows", "no UTF-8"])
def test_the_first_command_on_another_system(system, tmp_path):
    folder = tmp_path / "Ümlaute und Leerzeichen"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/zwölf.txt").write_text("Zwölf Boxkämpfer jagen Viktor.\r\n" * 20, encoding="utf-8")
    for name in "ab":
        text = "".join(f'{{"text": "{name} {i} größer als \\u00fc und 1"}}\n' for i in range(99))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    code = (WINDOWS if system == "windows" else "") + WALK.replace("ROOT", repr(str(ROOT)))
    env = os.environ | ({} if system == "windows" else {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    (tmp_path / "walk.py").write_text(code, encoding="utf-8")
    words = [sys.executable, "-X", "warn_default_encoding", tmp_path / "walk.py", "Läufe und mehr"]
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, encoding="utf-8", errors="replace", timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "Läufe und mehr"
    assert (run / "checkpoints/step_00000020/model.safetensors").is_file() and (run / "perplexity.png").is_file()
    assert not list(folder.rglob(".*partial")) and "1. The length of the warm-up" in done.stdout
