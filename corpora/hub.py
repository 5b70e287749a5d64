"""The paper's corpora on the Hugging Face hub: where they are, and their documents, read in ranges and kept nowhere."""

import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from corpora.readers import WAY_OUT, hash_share, read_documents
from engine.faults import hub_or_network, one_line

# A pattern of file names, then datasets: if one does not answer, the next.
SLIMPAJAMA = ("cerebras/SlimPajama-627B", "venketh/SlimPajama-62B")
HUB = {
    "pile": {
        "val": ("val.jsonl*", "EleutherAI/pile_val_test"),
        "train": ("document-*.bin", "EleutherAI/pile-deduped-pythia-preshuffled"),
    },
    "slimpajama": {
        "val": ("validation/chunk*.jsonl.zst", *SLIMPAJAMA),
        "train": ("train/chunk*.jsonl.zst", *SLIMPAJAMA),
    },
}
VAL_TOKENS = 20_000_000  # of the official validation files, if --val-tokens does not say
PYTHIA_ROW = 2049  # tokens in a row of the Pile as Pythia read it: a window of 2048, and the last one's target
RANGE = 2**24  # bytes asked for at a time
WAITS = (1, 4, 16, 64)  # seconds before a range is asked for again, each after the client's own five tries

# Sampling weights in percent of SlimPajama's domains, prepared by `data.py slimpajama --by-domain`.
DOMAINS = ("commoncrawl", "c4", "github", "book", "wikipedia", "arxiv", "stackexchange")
MIXTURES = {
    "slimpajama-paper": (67, 15, 4.5, 4.5, 4.5, 2.5, 2.0),  # the paper's Table 1
    "slimpajama-natural": (52.09, 26.69, 5.22, 4.20, 4.00, 4.43, 3.37),  # the follow-up's: natural proportions
}


def hub_files(datasets, pattern):
    """The files of the first dataset that answers, as paths owner/dataset/...; says so where it has to go on.

    Pythia's in Pythia's order, others in the order of a hash: a fair sample of all."""
    from huggingface_hub import HfApi  # late: everything else here works without a network

    folder, order = pattern.rpartition("/")[0] or None, None if pattern.endswith(".bin") else hash_share
    for dataset in datasets:
        try:
            tree = HfApi().list_repo_tree(dataset, folder, recursive=bool(folder), repo_type="dataset")
            names = sorted((entry.path for entry in tree if fnmatch(entry.path, pattern)), key=order)
            if not names:
                raise OSError("no such files")
            return [Path(dataset, name) for name in names]
        except Exception as fault:
            if not hub_or_network(fault):
                raise
            print(f"{dataset} is not available ({one_line(fault)})", file=sys.stderr)
    raise ValueError(f"none of {', '.join(datasets)} is available; try later, or give FILES of your own")


def read_hub(path, bar):
    """Yields the bytes of a file "owner/dataset/path" of the hub, range by range; nothing lands on the disk."""
    from huggingface_hub import HfFileSystem

    file = HfFileSystem().open(f"datasets/{Path(path).as_posix()}", "rb", cache_type="none")
    for begin in range(0, file.size, RANGE):
        block = read_range(path, file, begin, min(RANGE, file.size - begin))
        bar.update(len(block))
        yield block


def read_range(path, file, begin, size):
    """Bytes of an open file of the hub. If the client gives up, or too few bytes come, asks again after growing waits:
    a preparation that stops begins again."""
    for wait in (*WAITS, None):
        try:
            file.seek(begin)
            block = file.read(size)
            if len(block) != size:
                raise OSError(f"{path}: {len(block)} bytes came instead of {size}; repeat the command")
            return block
        except Exception as fault:
            if wait is None or not hub_or_network(fault):
                raise
            time.sleep(wait)


def pythia_rows(paths, bar):
    """Token ids in the order in which Pythia saw them, a row of 2,048 after the other; no tokenizing.

    The files of 30 GB are cuts of one: a row may begin in one and end in the next. The last token of each row, which is
    only a target, is left out: so windows of 2,048 fall on Pythia's own, but the target of a window's last token is the
    first token of the next row."""
    size, rest = 2 * PYTHIA_ROW, b""  # bytes
    for path in paths:
        for block in read_hub(path, bar):
            rest += block
            whole = len(rest) // size * size
            for begin in range(0, whole, size):
                yield np.frombuffer(rest, "<u2", PYTHIA_ROW - 1, begin)
            rest = rest[whole:]


def hub_documents(name, split, sources, bar, skip_bad_lines):
    """Yields (key, domain, text) of the official files of one split of one of the hub's corpora, and appends to
    `sources` the files that it begins to read."""
    pattern, *datasets = HUB[name][split]
    paths = hub_files(datasets, pattern)
    if pattern.endswith(".bin"):
        sources.append(paths[0].as_posix())
        yield from ((name, None, ids) for ids in pythia_rows(paths, bar))
        return
    for path in paths:
        sources.append(path.as_posix())
        for domain, text in read_documents([path], bar, skip_bad_lines, way_out=WAY_OUT, read=read_hub):
            yield text, domain, text
