"""The paper's corpora on the Hugging Face hub: where they are, and their documents, read in ranges and kept nowhere."""

import fnmatch
from pathlib import Path

import numpy as np

from corpora.readers import hash_share, read_blocks, read_documents

SLIMPAJAMA = ("cerebras/SlimPajama-627B", "venketh/SlimPajama-62B")  # the first was not always there in 2026
HUB = {  # a pattern of file names; datasets, of which the first that is on the hub is read
    "pile": {"val": ("val.jsonl*", "EleutherAI/pile_val_test"),
             "train": ("document-*.bin", "EleutherAI/pile-deduped-pythia-preshuffled")},
    "slimpajama": {"val": ("validation/chunk*.jsonl.zst", *SLIMPAJAMA),
                   "train": ("train/chunk*.jsonl.zst", *SLIMPAJAMA)},
}  # fmt: skip
VAL_TOKENS = 20_000_000  # of the official validation files, if --val-tokens does not say
PYTHIA_ROW = 2049  # tokens in a row of the Pile as Pythia read it: a window of 2048, and the last one's target
RANGE = 2**24  # bytes asked for at a time

# Sampling weights in percent of SlimPajama's domains, prepared by `data.py slimpajama --by-domain`.
DOMAINS = ("commoncrawl", "c4", "github", "book", "wikipedia", "arxiv", "stackexchange")
MIXTURES = {
    "slimpajama-paper": (67, 15, 4.5, 4.5, 4.5, 2.5, 2.0),  # the paper's Table 1
    "slimpajama-natural": (52.09, 26.69, 5.22, 4.20, 4.00, 4.43, 3.37),  # the follow-up's: natural proportions
}


def open_hub(path):
    """A file "owner/dataset/path" of the hub. Nothing lands on the disk; a range that fails is asked for six times."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(f"datasets/{path.as_posix()}", "rb", block_size=RANGE)


def pythia_rows(paths, bar):
    """Yields token ids in the order in which Pythia saw them, a row of 2,048 after the other.

    The files are cuts of one: a row may begin in one and end in the next. The last token of each row, which is only a
    target, is left out: so windows of 2,048 fall on Pythia's own."""
    rest = b""
    for path in paths:
        for block in read_blocks(open_hub(path), bar):
            rest += block
            whole = len(rest) - len(rest) % (2 * PYTHIA_ROW)  # bytes
            yield from np.frombuffer(rest[:whole], "<u2").reshape(-1, PYTHIA_ROW)[:, :-1]
            rest = rest[whole:]


def hub_files(pattern, datasets):
    """The paths owner/dataset/file that match a pattern, of the first of the datasets that is on the hub."""
    from huggingface_hub import HfApi  # late: everything else here works without a network

    dataset = next((each for each in datasets if HfApi().repo_exists(each, repo_type="dataset")), datasets[-1])
    files = fnmatch.filter(HfApi().list_repo_files(dataset, repo_type="dataset"), pattern)
    if not files:
        raise ValueError(f"{dataset}: no {pattern} there; give FILES of your own")
    return [Path(dataset, file) for file in files]


def hub_documents(name, split, bar, read, **reading):
    """Yields (key, domain, text) of a split of one of the hub's corpora; bar, read, reading: as in read_documents()."""
    pattern, *datasets = HUB[name][split]
    paths = hub_files(pattern, datasets)
    if pattern.endswith(".bin"):
        for ids in pythia_rows(sorted(paths), bar):
            read[min(paths).as_posix()] += 1
            yield name, None, ids
        return
    for path in sorted(paths, key=lambda path: hash_share(path.as_posix())):  # a fair sample of all
        for domain, text in read_documents([path], bar, opened=open_hub, read=read, **reading):
            yield text, domain, text
