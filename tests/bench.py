"""How fast a step is: ours against transformers' GPTNeoXForCausalLM with torch's fused AdamW. How fast text is
tokenized: ours against the tokenizers package. How fast training is beside another busy process.

    python tests/bench.py                            tiny 8 x 256, 70m 4 x 512 and 160m 4 x 512 on the CPU
    python tests/bench.py --device cuda --compile --sizes 160m:8x2048 410m:8x2048    eager, then compiled, on a GPU
    python tests/bench.py --short                    does it still run? (a few steps of tiny)
    python tests/bench.py --sizes 70m:4x512 --profile    where the time of our step goes, by torch.profiler
    python tests/bench.py --text FILE.jsonl tokenizer.json --threads 2
    python tests/bench.py --busy                     nano and tiny, quiet and beside a busy process in turn

Two processes, one each, take steps in turn on the same batch, in the same precision: so both see the same machine, and
the median of the ratios is steadier than either time. Needs requirements-dev.txt. Asserts nothing about time.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import train
from engine.machine import AUTOCAST, autocast, pick_precision
from model import PYTHIA_IDS, SIZES, GPTNeoX, config_of

ROOT = Path(train.__file__).parent
# The smallest sizes are timed as they are trained, on bytes.
VOCABULARY = dict.fromkeys(SIZES, PYTHIA_IDS) | dict.fromkeys(("nano", "micro", "tiny"), 257)


def product_rate(device, dtype, size=1024):
    """FLOP/s of a plain matrix product on a device, the best of several."""
    matrix, best = torch.ones(size, size, device=device, dtype=dtype), math.inf
    for _ in range(8):
        begun = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the result
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def flops_per_token(config, context):
    """Floating-point operations to learn from one token: 6 for each weight but the input embedding's, which is looked
    up, and 12 L D T for attention (PaLM, arXiv 2204.02311, appendix B; nothing off for causality)."""
    weights = config.parameters - config.vocab_size * config.hidden_size
    return 6 * weights + 12 * config.num_hidden_layers * config.hidden_size * context


def ours(config, device, compiled):
    network = GPTNeoX(config).to(device).train()
    if compiled:
        for layer in network.gpt_neox.layers:
            layer.forward = torch.compile(layer.forward)
    return network, network, train.AdamW(train.parameter_groups(network), lr=1e-4)


def theirs(config, device, compiled):
    import transformers

    known = {name: value for name, value in config.to_dict().items() if name != "architectures"}
    network = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**known, use_cache=False)).to(device).train()
    forward = torch.compile(network) if compiled else network

    def loss(tokens, targets):
        return torch.nn.functional.cross_entropy(forward(tokens).logits.flatten(0, 1), targets.flatten())

    groups = train.parameter_groups(network)
    return network, loss, torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def worker(who, size, shape, flags):
    """Takes a step for each line on stdin, and answers with the seconds it took and the most memory so far, in GiB."""
    torch.set_num_threads(flags.threads)
    sequences, context = map(int, shape.split("x"))
    config, device = config_of(size, VOCABULARY[size]), torch.device(flags.device)
    network, loss, optimizer = {"ours": ours, "theirs": theirs}[who](config, device, flags.compile)

    def step(number):
        generator = torch.Generator().manual_seed(number)
        rows = torch.randint(0, config.vocab_size, (sequences, context + 1), generator=generator).to(device)
        with autocast(device, AUTOCAST[flags.precision]):
            value = loss(rows[:, :-1], rows[:, 1:])
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB

    if flags.profile:
        step(0)
        with torch.profiler.profile() as profiler:
            for number in range(1, 4):
                step(number)
        order = f"self_{device.type}_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=40))
        return
    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        peak = step(number)
        print(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}), flush=True)


def compare(size, shape, flags, compiled):
    """A line of the table."""
    command = [sys.executable, __file__, "--device", flags.device, "--precision", flags.precision]
    command += ["--threads", str(flags.threads), *["--compile"] * compiled, "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": str(flags.threads)}
    steps, rates = {"ours": [], "theirs": []}, []
    arms = {who: subprocess.Popen([*command, who, size, shape], env=env, **pipes) for who in steps}
    for turn in range(flags.pairs + 2):  # the first two allocate, and compile
        for who, process in arms.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if turn >= 2:
                steps[who].append(answer)
        # The other processes wait meanwhile.
        rates.append(product_rate(flags.device, AUTOCAST[flags.precision] or torch.float32))
    for process in arms.values():
        process.stdin.close()
        process.wait()
    sequences, context = map(int, shape.split("x"))
    seconds = {who: statistics.median(s["seconds"] for s in answers) for who, answers in steps.items()}
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(*steps.values(), strict=True))
    memory = {who: answers[-1]["peak"] for who, answers in steps.items()}
    flops = flops_per_token(config_of(size, VOCABULARY[size]), context)
    rate = sequences * context / seconds["ours"]
    print(
        f"{size:<6}{shape:>8}{'compiled' if compiled else 'eager':>10}{seconds['ours']:>9.3f}{seconds['theirs']:>10.3f}"
        f"{ratio:>9.2f}{memory['ours']:>9.2f}{memory['theirs']:>10.2f}{flops * rate / statistics.median(rates):>11.0%}",
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


def beside_a_busy_process(size, pairs):
    """The rate of a short training beside a process that is always busy, as a share of the rate without one."""
    rates = {"quiet": [], "busy": []}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "train.py", "--init", "scratch", "--model", size, "--tokens", "100e3"]
        command += ["--eval-every", "1000", "--eval-tokens", "2048"]
        for number in range(pairs):
            for kind in rates:
                out = f"{kind}-{number}"
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if kind == "busy" else None
                try:
                    subprocess.run([*command, "--out", out], cwd=folder, check=True, stdout=subprocess.DEVNULL)
                finally:
                    if busy:
                        busy.kill()
                        busy.wait()
                lines = Path(folder, out, "metrics.jsonl").read_text().splitlines()
                updates = [json.loads(line) for line in lines if '"train"' in line]
                rates[kind].append(statistics.median(update["tokens_per_second"] for update in updates))
    shares = [busy / quiet for quiet, busy in zip(*rates.values(), strict=True)]
    told = ", ".join(f"{share:.0%}" for share in shares)
    print(f"{size:<6}{statistics.median(rates['quiet']):>8.0f} tokens/s; beside a busy process {told}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["tiny:8x256", "70m:4x512", "160m:4x512"]
    parser.add_argument("--sizes", nargs="+", default=default, metavar="SIZE:BxT", help=" ".join(default))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=("auto", *AUTOCAST))
    parser.add_argument("--compile", action="store_true", help="time both compiled as well")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps, or of runs, that count (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of steps and tokenizers (%(default)s)")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of the first of --sizes, instead of timing pairs")
    parser.add_argument("--text", nargs=2, metavar=("FILE", "TOKENIZER"), help="compare tokenizers, not steps")
    parser.add_argument("--busy", action="store_true", help="train beside a busy process, instead of timing steps")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.precision = pick_precision(flags.precision, torch.device(flags.device))
    if flags.text:
        compare_tokenizers(*flags.text, flags.threads, flags.pairs)
    elif flags.busy:
        for size in ("nano", "tiny"):
            beside_a_busy_process(size, flags.pairs)
    elif flags.profile:
        worker("ours", *flags.sizes[0].split(":"), flags)
    elif flags.worker:
        worker(*flags.worker, flags)
    else:
        if flags.short:
            flags.sizes, flags.pairs = ["tiny:2x64"], 1
        print(f"torch {torch.__version__}, {flags.device}, {flags.precision}, {flags.threads} thread(s)")
        print("size     batch                ours s  theirs s  theirs/     ours    theirs  of matmul")
        print("                                                   ours      GiB       GiB       rate")
        for each in flags.sizes:
            for compiled in (False, True)[: 1 + flags.compile]:
                compare(*each.split(":"), flags, compiled)
