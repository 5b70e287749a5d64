"""Commands side by side: each a process of its own with its share of the cores, so that small models fill them all."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from engine.files import cores
from engine.processes import held_signals

ROOT = Path(__file__).parent.parent


def start(words, launcher, threads):
    """Starts a command; its errors can be read from the process."""
    env = {"PYTHONPATH": str(ROOT)} | os.environ
    env["OMP_NUM_THREADS"] = env.get("OMP_NUM_THREADS") or str(threads)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launcher, *words], env=env, text=True, errors="replace", **pipes)


def side_by_side(commands, at_once, launcher, bar):
    """Runs commands, {folder of the run: words after `launcher`}, so many at once. Ctrl-C and SIGTERM stop them, and
    they save. RuntimeError with a command's own last line where it failed; the others are stopped then. Returns whether
    a signal came."""
    running, faults, threads = [], [], max(1, cores() // at_once)

    def work(number, out):
        if faults or signals:
            return
        bar.write(f"run {number}/{len(commands)} {out}", file=sys.stdout)
        process = start(commands[out], launcher, threads)
        running.append(process)
        complaints = process.communicate()[1].strip().splitlines()
        running.remove(process)
        if process.returncode:
            faults.append(f"{out}: {complaints[-1] if complaints else f'exit code {process.returncode}'}")

    with held_signals() as signals, ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(work, number, out) for number, out in enumerate(commands, 1)]
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            for future in done:
                future.result()  # raises what went wrong here
                bar.update()
            bar.refresh()
            if (faults or signals) and os.name == "posix":  # elsewhere Ctrl-C reaches all
                for process in [*running]:
                    process.terminate()
    if faults and not signals:
        raise RuntimeError(f"{faults[0]}; then the same command resumes")
    return bool(signals)
