"""The paper's corpora on the Hugging Face hub: where they are, and their documents, read in ranges and kept nowhere."""

import sys
import time
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

import numpy as np

from corpora.readers import hash_share, read_documents
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
PYTHIA_ROW = 2049  # tokens in a row of the Pile as Pythia read it: a window of 2048 and one more target
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


def open_hub(path):
    """A file "owner/dataset/path" of the hub, of which only the ranges that are read are fetched."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(f"datasets/{Path(path).as_posix()}", "rb", cache_type="none")


def read_hub(path, bar, file=None, start=0):
    """Yields the bytes of a file of the hub from byte `start` on, range by range; nothing lands on the disk.

    file: that of open_hub(path), if it is open already."""
    file = file or open_hub(path)
    for begin in range(start, file.size, RANGE):
        block = read_range(path, file, begin, min(RANGE, file.size - begin))
        bar.update(len(block))
        yield block


def read_range(path, file, begin, size):
    """Bytes of an open file of the hub; if that fails, or too few come, it asks again after growing waits."""
    for wait in (*WAITS, None):
        try:
            file.seek(begin)
            block = file.read(size)
            if len(block) != size:
                raise OSError(f"{path}: {len(block)} bytes came instead of {size}; the same command goes on")
            return block
        except Exception as fault:
            status = getattr(getattr(fault, "response", None), "status_code", 500)
            if wait is None or (status < 500 and status not in (408, 429)) or not hub_or_network(fault):
                raise
            time.sleep(wait)


def pythia_rows(paths, bar, skip):
    """Token ids in the order in which Pythia saw them, no tokenizing, from row `skip` on.

    The files of 30 GB are cuts of one: a row may begin in one and end in the next. A row's last token is only a
    target; without it, windows of 2048 and a target fall on Pythia's own windows."""
    size = 2 * PYTHIA_ROW  # bytes
    start, rest = skip * size, b""
    for path in paths:
        file = open_hub(path)
        for block in read_hub(path, bar, file, start):
            rest += block
            whole = len(rest) // size * size
            for begin in range(0, whole, size):
                yield np.frombuffer(rest, "<u2", PYTHIA_ROW - 1, begin)
            rest = rest[whole:]
        start = max(0, start - file.size)  # what is left to pass over in the next file


def hub_documents(name, split, begun, bar, skip_bad_lines):
    """Yields (file, key, domain, text) of the official files of one split of one of the hub's corpora.

    begun: {file: how many of its documents are written}; these are left out; files before the last are not read."""
    pattern, *datasets = HUB[name][split]
    # Goes on with the dataset that it began with, whichever answers now.
    datasets = [dataset for dataset in datasets if any(file.startswith(dataset) for file in begun)] or datasets
    paths, done = hub_files(datasets, pattern), list(begun)[:-1]
    if pattern.endswith(".bin"):
        file = paths[0].as_posix()
        yield from ((file, file, None, ids) for ids in pythia_rows(paths, bar, begun.get(file, 0)))
        return
    for path in paths:
        if (file := path.as_posix()) not in done:
            documents = read_documents([path], bar, skip_bad_lines, read_hub)
            for domain, text in islice(documents, begun.get(file, 0), None):
                yield file, text, domain, text
