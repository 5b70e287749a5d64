"""Systems that these tests do not run on: what only POSIX has is taken away, the rules of Windows for open files are
imitated, and the locale knows no UTF-8. Files, file systems, variables and networks as other machines have them."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import filelock
import pytest
import torch
from conftest import ROOT, command, refused
from safetensors import SafetensorError
from test_model import small

from engine import faults, files, machine, weights
from engine.faults import run_command
from model import GPTNeoX, config_of

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
    texts = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    done = subprocess.run(words, cwd=folder, env=env, timeout=200, **texts)
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "Läufe und mehr"
    assert (run / "checkpoints/step_00000020/model.safetensors").is_file() and (run / "perplexity.png").is_file()
    assert not list(folder.rglob(".*partial")) and "1. The length of the warm-up" in done.stdout


# ---------------------------------------------------------------- what files are


@pytest.fixture
def model_folder(empty):
    GPTNeoX(small()).save_pretrained("m")
    return Path("m")


def complaint(action, capsys, code=2):
    """The one line of an action that is refused."""
    with pytest.raises(SystemExit) as end:
        run_command(action, "x.py")
    line = capsys.readouterr().err
    assert end.value.code == code and line.count("\n") == 1, line
    return line


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_of_a_model_is_named_and_not_waited_for(model_folder, capsys, name):
    (model_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    line = complaint(lambda: GPTNeoX.from_pretrained("m"), capsys)
    assert f"m/{name}: a Git LFS pointer" in line and "git lfs pull" in line
    if hasattr(os, "mkfifo"):
        (model_folder / name).unlink()
        os.mkfifo(model_folder / name)
        assert f"m/{name}: not an ordinary file" in complaint(lambda: GPTNeoX.from_pretrained("m"), capsys)
        for read in (files.file_hash, files.read_json):
            assert "not an ordinary file" in complaint(lambda read=read: read(model_folder / name), capsys)


def test_a_half_filled_folder_says_which_file_is_missing(model_folder, capsys):
    def line():
        return complaint(lambda: GPTNeoX.from_pretrained("m"), capsys)

    whole, index = model_folder / "model.safetensors", model_folder / "model.safetensors.index.json"
    shard = model_folder / "model-00001-of-00002.safetensors"
    whole.rename(shard)
    assert "m: no model.safetensors.index.json; fetch or save the model again" in line()
    index.write_text(json.dumps({"weight_map": {"a": shard.name, "b": "model-00002-of-00002.safetensors"}}))
    assert "'model-00002-of-00002.safetensors', which is not a file of m; fetch the model again" in line()
    shard.unlink()
    index.unlink()
    assert "no model.safetensors; fetch" in line() and "pickle" not in line()
    whole.symlink_to("../../blobs/0")  # as in the hub's cache, whose blobs were cut short or removed
    assert "no model.safetensors; fetch" in line()
    (model_folder / "pytorch_model.bin").touch()
    assert "m: no model.safetensors; fetch" in line() and ".bin files alone, which are pickle and never read" in line()


def test_control_characters_break_no_line(tmp_path, capsys):
    shown = r"a\x1b[2Jb\r\x9b\u2028\u202e\ud800é" + "\u3000" + r"\n\t"  # any space is left as it is
    assert files.printable("a\x1b[2Jb\r\x9b\u2028\u202e\ud800é\u3000\n\t") == shown
    assert files.printable("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"
    assert r"a\nb\x1b]0;c" in complaint(lambda: files.read_json(tmp_path / "a\nb\x1b]0;c"), capsys)


# ---------------------------------------------------------------- what a system refuses


@pytest.mark.parametrize("room, name, fault, says", [
    (weights, "safe_open", OSError("No such device (os error 19)"), "m/model.safetensors: No such device"),
    (files, "open", PermissionError(errno.EACCES, "Permission denied", "m/config.json"), "m/config.json: Permis"),
    (hashlib, "file_digest", OSError(errno.EIO, "Input/output error"), "m/config.json: Input/output error\n"),
], ids=["no map", "unreadable", "broken"])  # fmt: skip
def test_a_refusal_of_the_system_is_not_called_damage(model_folder, capsys, monkeypatch, room, name, fault, says):
    monkeypatch.setattr(room, name, Mock(side_effect=fault), raising=False)
    read = GPTNeoX.from_pretrained if room != hashlib else lambda folder: files.file_hash(f"{folder}/config.json")
    assert complaint(lambda: read("m"), capsys).startswith(f"x.py: {says}")
    if room == files:
        with pytest.raises(PermissionError), weights.opened(model_folder / "model.safetensors"):
            pass


def test_only_a_full_disk_asks_for_room():
    safetensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for fault in (OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota exceeded"), safetensors):
        with pytest.raises(RuntimeError) as told, faults.saving("runs/a b"):
            raise fault
        assert str(told.value).startswith("could not save runs/a b: ")
        assert str(told.value).endswith("; make room, then: python train.py --resume 'runs/a b'")
    with pytest.raises(RuntimeError) as told, faults.saving("r"):
        raise PermissionError(errno.EACCES, "Permission denied", "r/x")
    assert str(told.value) == "could not save r: r/x: Permission denied; resume with: python train.py --resume r"


@pytest.mark.skipif(not hasattr(filelock, "UnixFileLock") or os.name == "nt", reason="no flock here")
@pytest.mark.parametrize("message", [None, "another process runs it"])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, message):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(ValueError, match=r"\.lock: No locks available; choose a folder"):
        files.locked(tmp_path / ".lock", message)


def test_a_device_that_is_not_here_is_one_line_and_a_cpu_of_unknown_kind_computes_in_fp32(monkeypatch):
    for name in ("hpu", "xpu", "meta", "cuda:99", "banana", "privateuseone"):
        with pytest.raises(ValueError, match=f"--device {name} is not available"):
            machine.pick_device(name)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # a private name, which a torch may lack
    assert machine.pick_precision("auto", machine.pick_device("cpu")) == "fp32"


# ---------------------------------------------------------------- variables and cores


@pytest.mark.parametrize("told, threads", [(None, [1, 8]), ("", [1, 8]), ("8", [8, 8])])  # an empty one is no value
def test_a_small_model_takes_one_thread_unless_told_otherwise(monkeypatch, told, threads):
    """A second gains it little, and costs it most of its speed where another process takes the core."""
    monkeypatch.setattr(machine, "ALL_THREADS", 8)
    monkeypatch.setattr(os, "environ", {} if told is None else {"OMP_NUM_THREADS": told})
    assert [machine.threads_for(config_of(size).hidden_size) for size in ("nano", "70m")] == threads


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert files.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert files.cores() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert files.cores() == 1


# ---------------------------------------------------------------- the network


def test_a_network_that_is_set_up_wrongly_is_one_line(tmp_path):
    env = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "", "no_proxy": ""}
    done = command("eval.py", "sample", "me/small", cwd=tmp_path, ALL_PROXY="socks5://127.0.0.1:9", **env)
    refused(done, "SOCKS", "me/small")


def test_a_typo_in_a_folder_is_not_asked_of_the_hub(empty):
    assert weights.is_hub_id("runs/typo")
    Path("runs").mkdir()
    assert not weights.is_hub_id("runs/typo") and weights.is_hub_id("EleutherAI/pythia-70m")
    with pytest.raises(ValueError, match="^runs/typo: no such folder"):
        weights.model_folder("runs/typo")
