"""Commands side by side: each a process of its own with its share of the cores, so that small models fill them all."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from engine.processes import Interruption

ROOT = Path(__file__).parent.parent
LOOKS = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class Job:
    """A command that makes something in a folder."""

    words: tuple[str, ...]  # after python, or what stands in its place
    out: str  # folder of the run
    whole: callable  # whether it got to its end


def start(words, launcher, threads):
    """Starts a command; what it complains of is kept in the process's `complaints`."""
    env = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)} | os.environ
    complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    process = subprocess.Popen([*launcher, *words], env=env, stdout=subprocess.DEVNULL, stderr=complaints)
    process.complaints = complaints
    return process


def side_by_side(jobs, at_once, launcher, bar):
    """Runs jobs, so many at once, and returns whether all got to their end; they are stopped, and save, by Ctrl-C and
    SIGTERM. RuntimeError with a job's own last line where it failed; the others are stopped then."""
    waiting, running, total = deque(enumerate(jobs, 1)), {}, len(jobs)
    threads, fault = max(1, (os.cpu_count() or 1) // at_once), None
    with Interruption() as interruption:
        while waiting or running:
            if waiting and len(running) < at_once:
                number, job = waiting.popleft()
                bar.write(f"run {number}/{total} {job.out}", file=sys.stdout)
                running[job] = start(job.words, launcher, threads)
                continue
            time.sleep(LOOKS)
            bar.n = sum(tokens_done(job.out) for job in jobs)
            bar.refresh()
            for job in [job for job, process in running.items() if process.poll() is not None]:
                process = running.pop(job)
                if process.returncode or not (job.whole() or interruption.arrived):
                    fault = fault or f"{job.out}: {last_line(process) or f'exit code {process.returncode}'}"
            if interruption.arrived or fault:
                waiting.clear()
                for process in running.values() if os.name == "posix" else ():  # elsewhere Ctrl-C reaches all
                    process.terminate()
    if fault and not interruption.arrived:
        raise RuntimeError(f"{fault}; the same command goes on")
    return not interruption.arrived


def last_line(process):
    process.complaints.seek(0)
    lines = [line.strip() for line in process.complaints if line.strip()]
    return lines[-1] if lines else ""


def tokens_done(out):
    """How many tokens the log of a run has come to."""
    try:
        with open(Path(out, "metrics.jsonl"), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2**12))
            return json.loads(log.read().splitlines()[-1])["tokens"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):  # not begun, or a line that is being written
        return 0
