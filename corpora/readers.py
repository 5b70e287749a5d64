"""Documents from files: rows or whole texts, plain or compressed; and the source code that every machine has."""

import codecs
import hashlib
import io
import json
import os
import re
import sys
import sysconfig
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import zstandard

from engine.files import open_file

BLOCK = 2**11  # bytes read at a time: few, so that a decompression bomb, which swells 30,000 times, fills no memory
ROW_LIMIT = 2**24  # bytes: a longer line is a mistake, or such a bomb. tiktoken takes 50 times this for a single word
BLANKS = 2**19  # characters: tiktoken panics at twice as many blanks in a row
PIECE, PIECES = 2**16, 200  # characters of a piece of a text at most, and into how many a small text is cut at least
EMBEDDED_BYTES = 8_000_000  # enough for a tiny model, read in seconds
EMBEDDED_FILE_BYTES = 12_000  # of a longer file the beginning, so that a few files do not make up a split
KINDS = r"(?i)\.(jsonl|ndjson|txt|md|rst|tex|py)(\.gz|\.zst)?$"  # names of files that hold text
ROWS = r"(?i)\.(jsonl|ndjson)(\.gz|\.zst)?$"
TABLES = r"(?i)\.(csv|tsv|parquet)(\.gz|\.zst)?$"
WAY_OUT = "mend or convert it, or pass --skip-bad-lines to data.py"  # of a preparation
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "generated"}  # tables and pages of a manual, not code


def source_files(paths):
    """The files of a command line, whatever their endings; of a folder those of KINDS inside it, sorted, without what
    is hidden. A line on stderr counts what is not read of a folder. ValueError for a path without text."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += files_below(path)
        elif not path.is_file():
            raise ValueError(f"{path}: no such file or folder")
        elif re.search(TABLES, path.name):
            raise ValueError(f"{path}: tables are not read; convert it to .jsonl with pandas, see corpora/README.md")
        else:
            files.append(path)
    return files


def files_below(folder):
    """The files of KINDS below a folder. Links are followed, but no folder is entered twice, so loops of links end."""
    entered, files, others = set(), [], []
    for path, folders, names in os.walk(folder, onerror=others.append, followlinks=True):
        if os.path.realpath(path) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(path))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for file in (Path(path, name) for name in names if name[0] != "."):
            (files if file.is_file() and re.search(KINDS, file.name) else others).append(file)
    unread = f"{len(others)} others are not read"
    if not files:
        raise ValueError(f"{folder}: no .jsonl, .ndjson, .txt, .md, .rst, .tex or .py, plain, .gz or .zst; {unread}")
    if others:
        print(f"{folder}: {len(files)} files of text; {unread}", file=sys.stderr)
    return sorted(files)


def read_blocks(file, bar):
    """Yields the bytes of an open file, block by block, and closes it."""
    with file:
        while block := file.read(BLOCK):
            bar.update(len(block))
            yield block


def decompressed(blocks, suffix):
    """Yields what the bytes of a .gz or .zst file hold, of other files the bytes. EOFError for a truncated file."""
    if suffix not in (".gz", ".zst"):
        yield from blocks
        return
    zstd, frame = zstandard.ZstdDecompressor(max_window_size=2**31), None  # as `zstd -d --long=31`
    for block in blocks:
        while block:
            if suffix == ".gz" and frame and frame.eof and not (block := block.lstrip(b"\0")):
                break  # gzip ignores zeros at the end
            if not frame or frame.eof:  # a file may hold several, one after the other
                frame = zlib.decompressobj(31) if suffix == ".gz" else zstd.decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data
    if frame and not frame.eof:
        raise EOFError("ends in the middle of a compressed frame")


def read_documents(files, bar, way_out="mend or convert it", opened=open_file, key="text", read=None, skipped=None):
    """Yields (domain, text) of every document: a row of a .jsonl or .ndjson file, with its text under `key`; of other
    files a piece, of which a small text has PIECES too, for a validation split needs documents.

    read: a Counter of documents by file. skipped: one of bad rows and of texts with a bad rest, which are then passed
    over; without it, ValueError names file and line."""
    passed_over = () if skipped is None else (ValueError, RecursionError)
    read = Counter() if read is None else read
    piece = max(2**8, min(PIECE, sum(path.stat().st_size for path in files if path.is_file()) // PIECES))
    for path in files:
        rows = re.search(ROWS, path.name)
        where = f"{path}:1" if rows else path
        blocks = decompressed(read_blocks(opened(path), bar), path.suffix.lower())
        try:
            for number, document in enumerate(lines(blocks) if rows else pieces(blocks, piece), 1):
                where = f"{path}:{number}" if rows else path
                if rows and not document.strip():
                    continue
                try:
                    domain, text = parse_row(document.strip(), key) if rows else (None, document)
                except passed_over:
                    skipped[path.as_posix()] += 1
                    continue
                read[path.as_posix()] += 1
                yield domain, text
        except passed_over:  # of a text: its rest
            skipped[path.as_posix()] += 1
        except (EOFError, zlib.error, zstandard.ZstdError) as fault:
            raise ValueError(f"{where}: damaged: {fault}; fetch or compress it again") from None
        except (ValueError, RecursionError) as fault:
            raise ValueError(f"{where}: damaged: {fault}; {way_out}") from None


def lines(blocks):
    """Yields the lines of bytes that come in blocks; a part of one that is longer than ROW_LIMIT."""
    line = bytearray()
    for block in blocks:
        for part in io.BytesIO(block):
            line += part
            if part.endswith(b"\n") or len(line) > ROW_LIMIT:
                yield line
                line = bytearray()
    if line:
        yield line


def pieces(blocks, limit):
    """Yields the text of bytes that come in blocks, in pieces of at most `limit` characters, cut at a line's end."""
    text = ""
    for part in codecs.iterdecode(blocks, "utf-8-sig"):  # without its mark
        text += part
        while len(text) > limit:
            end = text.rfind("\n", 0, limit) + 1 or limit
            yield text[:end]
            text = text[end:]
    if text:
        yield text


def parse_row(line, key):
    """(domain, text) of one JSON row with a text under `key`; ValueError says what is wrong with it."""
    if len(line) > ROW_LIMIT:
        raise ValueError(f"longer than {ROW_LIMIT >> 20} MiB")
    if line.startswith(b"[") or line == b"{":
        raise ValueError("not JSON Lines, with one object a line, but an array or an object over several lines")
    row = json.loads(line)
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f'no JSON object with a "{key}" (data.py --text-key names another)')
    if len(text) > BLANKS and max(map(len, re.findall(r"\s+", text)), default=0) > BLANKS:
        raise ValueError(f"more than {BLANKS:,} blanks in a row")
    meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
    domain = meta.get("pile_set_name") or meta.get("redpajama_set_name")
    return domain if isinstance(domain, str) else None, text


def embedded_documents(library):
    """(path, None, text) of the source files of "stdlib" or "torch", or of torch's C++ "headers", in the order of a
    hash: a fair sample of all. A long file is cut. Generated code is left out."""
    torch = Path(find_spec("torch").origin).parent  # found without importing it
    root = {"stdlib": Path(sysconfig.get_paths()["stdlib"]), "torch": torch, "headers": torch / "include"}[library]
    paths = root.rglob("*.h" if library == "headers" else "*.py")
    names = [path.relative_to(root).as_posix() for path in paths]
    names = [name for name in names if not SKIPPED_FOLDERS & set(name.split("/"))]
    size = 0
    for name in sorted(names, key=lambda name: hash_share("order of " + name)):
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        if library == "headers" and "@generated" in text[:1000]:
            continue
        if len(text.encode()) > EMBEDDED_FILE_BYTES:
            text = text.encode()[:EMBEDDED_FILE_BYTES].decode(errors="ignore").rpartition("\n")[0] + "\n"
        size += len(text.encode())
        if size > EMBEDDED_BYTES:
            return
        yield name, None, text


def hash_share(key):
    """A number in [0, 1) from the SHA-256 of a string: the same on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64
