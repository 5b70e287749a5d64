"""How fast a step is: ours against transformers' GPTNeoXForCausalLM with torch's fused AdamW. And how fast text is
tokenized: ours against the tokenizers package.

    python tests/bench.py                            tiny 8 x 256, 70m 4 x 512 and 160m 4 x 512 on the CPU
    python tests/bench.py --sizes 70m:2x256 --precision bf16 --compile
    python tests/bench.py --short                    does it still run? (a few steps of tiny)
    python tests/bench.py --sizes 70m:4x512 --profile    where the time of our step goes, by torch.profiler
    python tests/bench.py --text FILE.jsonl tokenizer.json --threads 2

Two processes, one each, take steps in turn on the same batch, in the same precision: so both see the same machine, and
the median of the ratios is steadier than either time. Needs requirements-dev.txt. Asserts nothing about time.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import data
import train
from engine.machine import AUTOCAST, product_rate
from model import GPTNeoX, config_of

BYTES = dict.fromkeys(("nano", "micro", "tiny"), 257)  # these are timed as they are trained, on bytes


class Text:
    """A corpus of random ids in a memory-mapped file: what data.Mixture needs of one."""

    def __init__(self, file, vocab_size, tokens=2**22):
        np.random.default_rng(0).integers(0, vocab_size, tokens, dtype="<u2").tofile(file)
        self.ids, self.vocab_size, self.tokenizer_sha256 = np.memmap(file, "<u2", "r"), vocab_size, None

    def windows(self, split, context):
        return (len(self.ids) - 1) // context

    def window(self, split, index, context):
        return self.ids[index * context : (index + 1) * context + 1]


def ours(config, compiled):
    network = GPTNeoX(config).train()
    if compiled:
        for layer in network.gpt_neox.layers:
            layer.forward = torch.compile(layer.forward)
    return network, network, train.AdamW(train.parameter_groups(network), lr=1e-4)


def theirs(config, compiled):
    import transformers

    known = {k: v for k, v in config.to_dict().items() if k not in ("architectures", "torch_dtype")}
    network = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**known, use_cache=False)).train()
    forward = torch.compile(network) if compiled else network

    def loss(tokens, targets):
        return torch.nn.functional.cross_entropy(forward(tokens).logits.flatten(0, 1), targets.flatten())

    groups = train.parameter_groups(network)
    return network, loss, torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def worker(flags):
    """Takes a step for each line on stdin, and answers with the seconds it took."""
    torch.set_num_threads(flags.threads)
    size, sequences, context = flags.worker[1], *map(int, flags.worker[2].split("x"))
    config = config_of(size, BYTES.get(size))
    dtype = AUTOCAST[flags.precision]
    autocast = (lambda: torch.autocast("cpu", dtype)) if dtype else nullcontext
    network, loss, optimizer = {"ours": ours, "theirs": theirs}[flags.worker[0]](config, flags.compile)
    with tempfile.NamedTemporaryFile() as file:
        mixture = data.Mixture({Text(file.name, config.vocab_size): 1.0}, context, seed=0)

        def step(number):
            """(loss, seconds to read the batch) of an update."""
            start = time.perf_counter()
            rows = mixture.batch(number, sequences)
            read = time.perf_counter() - start
            with autocast():
                value = loss(rows[:, :-1], rows[:, 1:])
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return value, read

        if flags.profile:
            step(0)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                for number in range(1, 4):
                    step(number)
            print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
            return
        for number, _ in enumerate(sys.stdin):
            start = time.perf_counter()
            value, read = step(number)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB; Linux counts in KiB
            print(json.dumps({"seconds": seconds, "read": read, "peak": peak, "loss": value.item()}), flush=True)


def compare(size, shape, flags):
    """A line of the table."""
    options = ["--precision", flags.precision, "--threads", str(flags.threads), *["--compile"] * flags.compile]
    words = {who: [sys.executable, __file__, *options, "--worker", who, size, shape] for who in ("ours", "theirs")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": str(flags.threads)}
    arms = {who: subprocess.Popen(command, env=env, **pipes) for who, command in words.items()}
    steps, rates = {who: [] for who in arms}, []
    for turn in range(flags.pairs + 2):  # the first two allocate, and compile
        for who, process in arms.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if turn >= 2:
                steps[who].append(answer)
        rates.append(product_rate("cpu", AUTOCAST[flags.precision] or torch.float32))  # the other processes wait
    for process in arms.values():
        process.stdin.close()
        process.wait()
    middle = {who: statistics.median(s["seconds"] for s in answers) for who, answers in steps.items()}
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*steps.values(), strict=True))
    sequences, context = map(int, shape.split("x"))
    flops = sequences * context * config_of(size, BYTES.get(size)).flops_per_token(context)
    share = statistics.median(flops / s["seconds"] for s in steps["ours"]) / statistics.median(rates)
    memory = {who: answers[-1]["peak"] for who, answers in steps.items()}
    read = statistics.median(s["read"] / s["seconds"] for s in steps["ours"])
    print(
        f"{size:<6}{shape:>7}{middle['ours']:>10.3f}{middle['theirs']:>10.3f}{ratio:>8.2f}{memory['ours']:>9.2f}"
        f"{memory['theirs']:>9.2f}{memory['ours'] / memory['theirs']:>8.2f}{share:>9.0%}{read:>8.2%}",
        flush=True,
    )


def compare_tokenizers(file, tokenizer, threads, pairs):
    """Millions of characters a second, from text to token ids: ours, and the package's encode_batch."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the package reads it once, before its first batch
    from tokenizers import Tokenizer

    from corpora.prepare import tokenize_all
    from corpora.readers import read_documents
    from corpora.tokenizer import load_tokenizer

    texts = [text for _, text in read_documents([Path(file)], tqdm(disable=True))]
    mine, package, seconds = load_tokenizer(tokenizer), Tokenizer.from_file(tokenizer), {"ours": [], "theirs": []}
    arms = {
        "ours": lambda: deque(tokenize_all(((text, None, text) for text in texts), mine, threads), maxlen=0),
        "theirs": lambda: package.encode_batch(texts, add_special_tokens=False),
    }
    for turn in range(pairs + 1):  # the first fills caches
        for who, encode in arms.items():
            start = time.perf_counter()
            encode()
            seconds[who] += [time.perf_counter() - start] * (turn > 0)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    rates = {who: sum(map(len, texts)) / 1e6 / statistics.median(times) for who, times in seconds.items()}
    print(
        f"{threads} thread(s): ours {rates['ours']:.2f}, theirs {rates['theirs']:.2f} M characters/s; {ratio:.2f} times"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["tiny:8x256", "70m:4x512", "160m:4x512"]
    parser.add_argument("--sizes", nargs="+", default=default, metavar="SIZE:BxT", help=" ".join(default))
    parser.add_argument("--precision", default="fp32", choices=AUTOCAST)
    parser.add_argument("--compile", action="store_true", help="both")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps that count (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of the first of --sizes, instead of timing pairs")
    parser.add_argument("--text", nargs=2, metavar=("FILE", "TOKENIZER"), help="compare tokenizers, not steps")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.profile:
        flags.worker = ["ours", *flags.sizes[0].split(":")]
    if flags.text:
        compare_tokenizers(*flags.text, flags.threads, flags.pairs)
    elif flags.worker:
        worker(flags)
    else:
        if flags.short:
            flags.sizes, flags.pairs = ["tiny:2x64"], 1
        print(f"torch {torch.__version__}, {flags.threads} thread(s), {flags.precision}, compiled: {flags.compile}")
        print("size     batch   ours s  theirs s  theirs/  ours     theirs   ours/   of matmul  reading")
        print("                                     ours   GiB        GiB  theirs     rate     data")
        for each in flags.sizes:
            compare(*each.split(":"), flags)
