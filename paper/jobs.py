"""Commands side by side: each a process of its own with its share of the cores, so that small models fill them all."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from engine.processes import Interruption

ROOT = Path(__file__).parent.parent


class Job(NamedTuple):
    """A command that makes a run."""

    words: tuple  # after python, or what stands in its place
    out: str  # folder of the run
    whole: callable  # whether it got to its end


def start(words, launcher, threads):
    """Starts a command; its errors can be read from the process."""
    env = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)} | os.environ
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launcher, *words], env=env, text=True, errors="replace", **pipes)


def side_by_side(jobs, at_once, launcher, bar):
    """Runs jobs, so many at once, and returns whether all got to their end.

    Ctrl-C and SIGTERM stop them, and they save. RuntimeError with a job's own last line where it failed; the others are
    stopped then."""
    running, faults, threads = {}, [], max(1, (os.cpu_count() or 1) // at_once)

    def work(number, job):
        if faults or interruption.arrived:
            return
        bar.write(f"run {number}/{len(jobs)} {job.out}", file=sys.stdout)
        process = running[job] = start(job.words, launcher, threads)
        complaints = process.communicate()[1].strip().splitlines()
        del running[job]
        if process.returncode or not (job.whole() or interruption.arrived):
            faults.append(f"{job.out}: {complaints[-1] if complaints else f'exit code {process.returncode}'}")

    with Interruption() as interruption, ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(work, number, job) for number, job in enumerate(jobs, 1)]
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            for future in done:
                future.result()  # raises what went wrong here
            bar.n = sum(tokens_done(job.out) for job in jobs)
            bar.refresh()
            if (faults or interruption.arrived) and os.name == "posix":  # elsewhere Ctrl-C reaches all
                for process in list(running.values()):
                    process.terminate()
    if faults and not interruption.arrived:
        raise RuntimeError(f"{faults[0]}; the same command resumes")
    return not interruption.arrived


def tokens_done(out):
    """How many tokens the log of a run has come to."""
    try:
        with open(Path(out, "metrics.jsonl"), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2**12))
            return json.loads(log.read().splitlines()[-1])["tokens"]
    except (OSError, ValueError, IndexError, KeyError, TypeError):  # not begun, or a line that is being written
        return 0
