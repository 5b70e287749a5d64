"""Documents from files: rows of .jsonl or whole texts, plain or compressed, streamed; and the source code that every
machine has."""

import hashlib
import io
import json
import re
import sysconfig
import zlib
from importlib.util import find_spec
from pathlib import Path

import zstandard

DOCUMENT_LIMIT = 2**28  # bytes: a longer line or file is a mistake, or a decompression bomb
EMBEDDED_BYTES = 8_000_000  # enough for a tiny model, read in seconds
EMBEDDED_FILE_BYTES = 12_000  # of a longer file the beginning: no file makes up 2 % of a split
KINDS = r"(?i)\.(jsonl|txt|md|rst|tex|py)(\.gz|\.zst)?$"  # names of files that hold text
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
SKIPPED_FOLDERS |= {"encodings", "pydoc_data", "generated"}  # tables and pages of a manual, not code


def source_files(paths):
    """The files of a command line; of a folder those of KINDS inside it, sorted, without what is hidden.

    Raises ValueError for a path that holds none."""
    files = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise ValueError(f"{given}: no such file or folder")
        inside = sorted(p for p in path.rglob("[!.]*") if p.is_file()) if path.is_dir() else [path]
        seen = [p for p in inside if not any(name.startswith(".") for name in p.relative_to(path).parts)]
        found = [p for p in seen if re.search(KINDS, p.name)]
        if not found:
            raise ValueError(f"{path}: no .jsonl or .txt here (nor .md .rst .tex .py, nor these as .gz .zst)")
        files += found
    return files


def read_local(path, bar):
    """Yields the bytes of a file, block by block."""
    with open(path, "rb") as file:
        while block := file.read(2**16):
            bar.update(len(block))
            yield block


def decompressed(blocks, suffix):
    """Yields what the bytes of a .gz or .zst file hold, of other files the bytes. EOFError for a truncated file."""
    kinds = {".gz": lambda: zlib.decompressobj(31), ".zst": zstandard.ZstdDecompressor().decompressobj}
    new = kinds.get(suffix.lower())
    if new is None:
        yield from blocks
        return
    frame = None  # a file may hold several, one after the other
    for block in blocks:
        for start in range(0, len(block), 2048):  # small, so that a bomb that swells 30,000 times fills no memory
            bite = block[start : start + 2048]
            while bite:
                frame = new() if frame is None or frame.eof else frame
                yield frame.decompress(bite)
                bite = frame.unused_data
    if frame and not frame.eof:
        raise EOFError("ends in the middle of a compressed frame")


def joined(blocks, by_line):
    """Yields the lines, or the whole, of bytes that come in blocks; early what is longer than DOCUMENT_LIMIT."""
    document = bytearray()
    for block in blocks:
        for line in io.BytesIO(block) if by_line else [block]:
            document += line
            if (by_line and line.endswith(b"\n")) or len(document) > DOCUMENT_LIMIT:
                yield document
                document = bytearray()
    if document:
        yield document


def read_documents(files, bar, skip_bad_lines=False, read=read_local):
    """Yields (domain, text) of every document: the "text" of each row of a .jsonl file, or a whole file of text.

    The domain is the row's meta.pile_set_name or meta.redpajama_set_name, if any. A damaged line or file raises
    ValueError with its name and line; with skip_bad_lines a damaged line is counted in bar.bad instead.
    read(file, bar): what yields the bytes of a file."""
    for path in files:
        kind, line = re.search(KINDS, path.name), 0
        jsonl = kind and kind[1].lower() == "jsonl"
        try:
            for document in joined(decompressed(read(path, bar), path.suffix), jsonl):
                line += 1
                if len(document) > DOCUMENT_LIMIT:
                    raise ValueError(f"longer than {DOCUMENT_LIMIT >> 20} MiB")
                if not jsonl:
                    yield None, document.decode()
                elif not document.isspace():
                    try:
                        yield parse_row(document)
                    except (ValueError, RecursionError) as fault:
                        if not skip_bad_lines:
                            raise ValueError(f"{fault}; mend it, or pass --skip-bad-lines") from None
                        bar.bad += 1
        except (ValueError, EOFError, zlib.error, zstandard.ZstdError) as fault:
            where = f"{path}:{max(line, 1)}" if jsonl else path
            raise ValueError(f"{where}: damaged: {fault}") from None


def cut(text, limit):
    """Yields a text in pieces of at most so many characters, cut where a line ends: of a long text, validation gets a
    sample."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1 or start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def parse_row(line):
    """(domain, text) of one JSON row; ValueError says what is wrong with it."""
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError('no JSON object with a "text"')
    meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
    domain = meta.get("pile_set_name") or meta.get("redpajama_set_name")
    return domain if isinstance(domain, str) else None, row["text"]


def embedded_documents(library):
    """(path, text) of the source files of an embedded corpus, ordered by a hash of the path: a fair sample of all.

    library: "stdlib" or "torch" for Python, "headers" for torch's C++ headers. A long file is cut, so that a few files
    do not make up a split. Generated code is left out."""
    root, pattern = source_root(library)
    names = [path.relative_to(root).as_posix() for path in root.rglob(pattern)]
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
        yield name, text


def source_root(library):
    """(folder, pattern of file names) of an embedded corpus."""
    if library == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"]), "*.py"
    torch = Path(find_spec("torch").origin).parent  # found without importing it
    return (torch / "include", "*.h") if library == "headers" else (torch, "*.py")


def hash_share(key):
    """A number in [0, 1) from the SHA-256 of a string: the same on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64
