"""The hub, without network: the real client against a small server on the loopback, in processes of their own."""

import functools
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import zstandard
from conftest import FORKS, REAL, WHEREVER, call, command, refused, texts
from test_corpora import small_spec, tokenizer_file
from tqdm import tqdm

import corpora.hub
import data
from corpora import readers
from corpora.tokenizer import byte_tokenizer
from engine.faults import hub_or_network
from eval import token_losses
from model import GPTNeoX, GPTNeoXConfig

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's HTTP as huggingface_hub needs to resolve a revision, list and download files."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos = {}  # "owner/name" -> {revision: {file: bytes}}
        self.gated, self.downloads = set(), []
        self.cuts, self.shorts = {}, {}  # file: how many answers hang up half-way, how many are half as long as asked

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, code, kind):
        self.reply(code, b'{"error": "no"}', X_Error_Code=kind, X_Error_Message="no")

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0].strip("/").replace("datasets/", "", 1).split("/")
        api = path[0] == "api"
        path = path[1:] if api else path
        path = path[1:] if api and path[0] == "models" else path  # "datasets" is gone already
        repo = "/".join(path[:2])
        if repo in hub.gated:
            return self.fail(403, "GatedRepo")
        if repo not in hub.repos:
            return self.fail(401, "RepoNotFound")
        revision = path[3] if len(path) > 3 else "main"
        revisions = hub.repos[repo]
        if revision.startswith(SHA[:-2]):  # the commit of a revision: its number in the last two digits
            files = list(revisions.values())[int(revision[-2:])]
        elif revision in revisions:
            files = revisions[revision]
        else:
            return self.fail(404, "RevisionNotFound")
        commit = f"{SHA[:-2]}{list(revisions.values()).index(files):02d}"
        if api and len(path) > 2 and path[2] in ("tree", "paths-info"):
            folder = "/".join(path[4:])
            rows = [{"type": "file", "path": f, "size": len(b), "oid": str(len(b))} for f, b in files.items()]
            rows = [row for row in rows if row["path"].startswith(folder)]
            if self.command == "POST":
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                rows = [row for row in rows if row["path"] in str(json.loads(asked)["paths"])]
            return self.reply(200, json.dumps(rows).encode(), Content_Type="application/json")
        if api:
            answer = {"id": repo, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")
        file = "/".join(path[4:])
        if file not in files:
            return self.fail(404, "EntryNotFound")
        body = files[file]
        headers = {"ETag": f'"{hash(body) & (2**64 - 1):016x}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.reply(200, Content_Length=str(len(body)), **headers)
        hub.downloads.append(file)
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(start), int(end) if end else len(body) - 1
        if hub.shorts.get(file, 0) > 0:
            hub.shorts[file] -= 1
            end = (start + end) // 2
        part = body[start : end + 1]
        if len(part) < len(body):
            headers["Content_Range"] = f"bytes {start}-{end}/{len(body)}"
        ranged = 206 if len(part) < len(body) else 200
        if hub.cuts.get(file, 0) > 0:  # promise everything, send half, hang up
            hub.cuts[file] -= 1
            self.reply(ranged, part[: len(part) // 2], Content_Length=str(len(part)), **headers)
            self.close_connection = True
            return None
        return self.reply(ranged, part, **headers)


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def files_of(tmp_path, seed=0):
    config = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = GPTNeoX(GPTNeoXConfig(**config, intermediate_size=64, max_position_embeddings=64), seed=seed)
    network.save_pretrained(tmp_path / "saved")
    files = {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()}
    return files | {"tokenizer.json": json.dumps(byte_tokenizer()).encode()}


@pytest.fixture
def repo(hub, tmp_path):
    useless = {"README.md": b"#", "pytorch_model.bin": b"pickle", "tf_model.h5": b"0"}
    hub.repos["me/small"] = {"main": files_of(tmp_path) | useless, "step10": files_of(tmp_path, 1) | useless}
    return hub


def env(hub, folder, **more):
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def calls(commands, cwd, **env):
    """The finished commands, one after the other in one process of its own: the client reads its settings once."""
    with FORKS.Pool(1, initializer=start_in, initargs=(str(cwd), env)) as pool:
        return pool.starmap(call, commands)


def start_in(cwd, env):
    os.chdir(cwd)
    os.environ |= env
    torch.set_num_threads(1)


def continue_from(hub, house, *words, name="me/small", **more):
    words = [*WHEREVER, "--init", name, "--max-lr", "1e-3", *words]
    return command("train.py", *words, cwd=house, **env(hub, house, **more))


@pytest.mark.slow
def test_a_revision_is_resolved_downloaded_and_continued(repo, house):
    done = continue_from(repo, house, "--revision", "step10", "--out", "r")
    assert done.returncode == 0, done.stderr
    assert set(repo.downloads) == {"config.json", "model.safetensors", "tokenizer.json"}  # only what is needed
    first = GPTNeoX(GPTNeoX.from_pretrained("r/checkpoints/step_00000020").config, seed=1)
    loss = token_losses(first, data.fixed_windows(data.Corpus("old"), 32, 256), 8).mean().item()
    start = json.loads((house / "r/metrics.jsonl").read_text().splitlines()[0])
    assert start["upstream_loss"] == pytest.approx(loss, rel=1e-6)
    # And again from the cache, with the server gone or the hub switched off.
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        words = ["eval.py", "sample", "me/small", "--revision", "step10", "--tokens", "1"]
        done = command(*words, cwd=house, **env(repo, house, **offline))
        assert done.returncode == 0, done.stderr


def last_line(done):
    """As refused(), where the client may print of its own (progress, retries) before our line."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_what_can_go_wrong_is_one_line(repo, house, tmp_path):
    repo.gated.add("me/gated")
    bin_only = {k: v for k, v in repo.repos["me/small"]["main"].items() if k != "model.safetensors"}
    repo.repos["me/pickled"] = {"main": bin_only}
    cases = {
        "me/missing: no folder of this name here; on the hub: 401 Client Error. Repository Not Found": ["me/missing"],
        "gated repo": ["me/gated"],
        "Revision Not Found": ["me/small", "--revision", "step99"],
        "never read": ["me/pickled"],
        "me/small/x": ["me/small/x"],
    }
    commands = [["train.py", *WHEREVER, "--max-lr", "1e-3", "--init", *words] for words in cases.values()]
    for says, done in zip(cases, calls(commands, house, **env(repo, house)), strict=True):
        assert says in last_line(done)
    for more in ({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = continue_from(repo, house, **more)
        assert "me/small: no folder of this name here" in last_line(done) and "local disk" in last_line(done)
    assert not [*house.glob("runs/*")] and "pytorch_model.bin" not in repo.downloads


@pytest.mark.slow
def test_a_download_that_is_cut_short_goes_on(repo, house):
    repo.cuts["model.safetensors"] = 1
    done = continue_from(repo, house, "--out", "r")
    if done.returncode:  # the client gave up, in one line; the same command goes on
        assert "Traceback" not in done.stderr, done.stderr
        done = continue_from(repo, house, "--out", "r")
    assert done.returncode == 0, done.stderr
    assert repo.downloads.count("model.safetensors") == 2


def test_neox_tokenizer_and_lambada_come_from_the_hub(repo, house):
    repo.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": json.dumps(small_spec()).encode()}}
    (house / "a.jsonl").write_text("".join(json.dumps({"text": f"the thing {i}"}) + "\n" for i in range(99)))
    texts = "".join(json.dumps({"text": f"over {i} and under the river"}) + "\n" for i in range(5)).encode()
    repo.repos["EleutherAI/lambada_openai"] = {"main": {"data/lambada_test_en.jsonl": texts}}
    commands = [["data.py", "mine", "a.jsonl"], ["eval.py", "lambada", "me/small", "--json"]]
    prepared, done = calls(commands, house, **env(repo, house))
    assert prepared.returncode == done.returncode == 0, (prepared.stderr, done.stderr)
    assert json.loads(done.stdout)["texts"] == 5 and torch.tensor(json.loads(done.stdout)["perplexity"]) > 1


def test_without_the_hub_a_missing_neox_tokenizer_is_one_line_at_once(house):
    Path("a.jsonl").write_text('{"text": "a"}\n')
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(house / "cache")}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}, {"ALL_PROXY": "socks5://127.0.0.1:9"}):
        begun = time.time()
        done = command("data.py", "mine", "a.jsonl", cwd=house, **nowhere, **more)
        refused(done, "no neox tokenizer here or on the hub", "--tokenizer FILE")
        assert time.time() - begun < 10


@pytest.mark.slow
def test_a_checkpoint_of_the_hub_continues_on_its_own_tokens(repo, house, monkeypatch):
    (house / "t.json").write_text(json.dumps(small_spec()))
    monkeypatch.setattr(readers, "EMBEDDED_BYTES", 300_000)
    data.prepare("stdlib-neox", tokenizer="t.json")  # as the first use does with Pythia's tokenizer
    data.prepare("torch-neox", tokenizer="t.json")
    config = json.loads(repo.repos["me/small"]["main"]["config.json"]) | {"vocab_size": 300}
    GPTNeoX(GPTNeoXConfig.from_dict(config)).save_pretrained(house / "larger")
    files = {p.name: p.read_bytes() for p in (house / "larger").iterdir()}
    repo.repos["me/small"] = {"main": files | {"tokenizer.json": (house / "t.json").read_bytes()}}
    words = ["--init", "me/small", "--max-lr", "1e-3", "--tokens", "512", "--eval-tokens", "64"]
    done = command("train.py", *words, "--out", "r", cwd=house, **env(repo, house))
    assert done.returncode == 0, done.stderr
    flags = json.loads((house / "r/config.json").read_text())["flags"]
    assert (flags["upstream"], flags["downstream"]) == ("stdlib-neox", "torch-neox")
    assert (flags["replay"], flags["warmup"], flags["schedule"], flags["min_lr"]) == (0, 0.01, "cosine", 1e-4)


def test_the_defaults_are_the_papers_whatever_a_model_is_called(repo, house):
    """The peak of its size's pre-training, 1 % warm-up, cosine to a tenth, no replay: by id or in a folder."""
    shape = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 256, "max_position_embeddings": 256}  # that of nano
    GPTNeoX(GPTNeoXConfig(**shape)).save_pretrained(house / "pythia-410m")
    files = {p.name: p.read_bytes() for p in Path(house, "pythia-410m").iterdir()}
    repo.repos["EleutherAI/pythia-410m"] = {"main": files}
    words = ["train.py", "--upstream", "old", "--downstream", "new", "--dry-run", "--tokens"]
    for tokens in (10**6, 10**12):
        by_id = command(*words, tokens, "--init", "EleutherAI/pythia-410m", cwd=house, **env(repo, house))
        for done in (by_id, call(*words, tokens, "--init", "pythia-410m")):
            flags = json.loads(done.stdout[done.stdout.index("{") :])
            assert (flags["max_lr"], flags["min_lr"], flags["warmup"], flags["replay"]) == (8e-3, 8e-4, 0.01, 0.0)
            assert flags["schedule"] == "cosine"


# ---------------------------------------------------------------- the paper's corpora


def sample(name, count):
    """Rows as the hub has them: of the real sample where it is at hand, else made up with the same fields."""
    kind = {"pile": "pile_set_name", "redpajama": "redpajama_set_name"}[name]
    if (REAL / f"{name}_sample.jsonl.zst").exists():
        whole = zstandard.ZstdDecompressor().stream_reader((REAL / f"{name}_sample.jsonl.zst").open("rb"))
        return [line + b"\n" for line in whole.read().splitlines() if len(line) < 5000][:count]
    domains = {"pile": ["Pile-CC", "Github"], "redpajama": ["RedPajamaC4", "RedPajamaArXiv"]}[name]
    made = enumerate(texts("old", count))
    return [json.dumps({"text": t, "meta": {kind: domains[i % 2]}}).encode() + b"\n" for i, t in made]


@pytest.fixture
def corpora_hub(hub, tmp_path):
    """Both corpora in their real layouts, and the tokenizer."""
    path = tokenizer_file(tmp_path)
    hub.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": path.read_bytes()}}
    pile, pajama = sample("pile", 60), sample("redpajama", 120)
    hub.repos["EleutherAI/pile_val_test"] = {"main": {"README.md": b"#", "val.jsonl": b"".join(pile)}}
    hub.rows = np.random.default_rng(0).integers(2, 200, (70, 2049)).astype("<u2")
    rows, cut = hub.rows.tobytes(), 40 * 4098 + 1001  # within a row, and within a token
    shards = {f"document-0000{i}-of-00020.bin": part for i, part in enumerate((rows[:cut], rows[cut:]))}
    hub.repos["EleutherAI/pile-deduped-pythia-preshuffled"] = {"main": shards | {"document.idx": b"x"}}
    files = {"README.md": b"#"}
    for chunk in (1, 2):
        files[f"validation/chunk{chunk}.jsonl.zst"] = zstandard.compress(b"".join(pajama[chunk - 1 : 40 : 2]))
        files[f"train/chunk{chunk}.jsonl.zst"] = zstandard.compress(b"".join(pajama[39 + chunk :: 2]))
    hub.repos["venketh/SlimPajama-62B"] = {"main": files}
    hub.pajama = [json.loads(line) for line in pajama]
    return hub


@pytest.mark.slow
def test_the_pile_comes_in_pythias_own_rows(corpora_hub, empty):
    corpora_hub.cuts["document-00000-of-00020.bin"] = corpora_hub.shorts["document-00001-of-00020.bin"] = 1
    words = ["data.py", "pile", "--train-tokens", str(50 * 2048), "--val-tokens", "3000"]
    done = command(*words, cwd=empty, **env(corpora_hub, empty))
    assert done.returncode == 0, done.stderr
    corpus = data.Corpus("pile")
    expected = corpora_hub.rows[:50, :2048]  # in order, over the border of two files
    assert np.array_equal(corpus.splits["train"].reshape(-1, 2048), expected)
    assert np.array_equal(corpus.window("train", 7, 2048)[:-1], expected[7])
    assert 3000 <= corpus.meta["val"]["tokens"] < 60_000
    assert corpus.meta["train"]["bytes_of_text"] == 50 * 2048  # these ids are single bytes
    assert corpus.meta["sources"][:2] == [
        "EleutherAI/pile_val_test/val.jsonl",
        "EleutherAI/pile-deduped-pythia-preshuffled/document-00000-of-00020.bin",
    ]


@pytest.mark.parametrize("cuts, shorts", [(0, 0), (2, 0), (0, 2), (99, 0)])
def test_ranges_are_exact_and_asked_for_again_after_growing_waits(hub, monkeypatch, cuts, shorts):
    waits, body = [], bytes(range(256)) * 100
    hub.repos["me/corpus"], hub.cuts["a.bin"], hub.shorts["a.bin"] = {"main": {"a.bin": body}}, cuts, shorts
    connect = functools.partial(huggingface_hub.HfFileSystem, endpoint=hub.url, skip_instance_cache=True)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", connect)
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(corpora.hub, "RANGE", 10_000)
    parts = readers.read_blocks(corpora.hub.open_hub(Path("me/corpus/a.bin")), tqdm(disable=True))
    if cuts == 99:
        with pytest.raises(Exception) as caught:
            next(parts)
        assert hub_or_network(caught.value) and sum(waits) > 20
    else:
        assert b"".join(parts) == body
        assert 3 <= len(hub.downloads) - cuts <= 3 + shorts and len(waits) == cuts
    assert waits == sorted(waits)


def test_slimpajama_is_split_by_domain(corpora_hub, empty):
    words = ["data.py", "slimpajama", "--train-tokens", "1e9", "--by-domain", "--processes", "2"]
    done = command(*words, cwd=empty, **env(corpora_hub, empty))
    assert done.returncode == 0, done.stderr
    found = {"train": 0, "val": 0}
    for folder in (empty / "data").glob("slimpajama-*"):
        for split in found:
            found[split] += data.Corpus(folder.name).meta[split]["documents"]
    assert found == {"train": len(corpora_hub.pajama) - 40, "val": 40}  # the official validation files, and only they
    domain = corpora_hub.pajama[0]["meta"]["redpajama_set_name"]
    assert (empty / f"data/slimpajama-{domain.lower()}/meta.json").exists()
    assert not list((empty / "cache").rglob("*.zst"))  # shards are read, not kept


def test_a_corpus_that_the_hub_does_not_have(hub, tmp_path):
    hub.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": json.dumps(byte_tokenizer()).encode()}}
    words = ["data.py", "slimpajama", "--train-tokens", "1e6"]
    done = command(*words, cwd=tmp_path, **env(hub, tmp_path))
    assert "Repository Not Found for url" in last_line(done) and "venketh/SlimPajama-62B" in last_line(done)
    done = command(*words, cwd=tmp_path, **env(hub, tmp_path, ALL_PROXY="socks5://127.0.0.1:9"))
    assert "socks" in last_line(done)  # the tokenizer is in the cache
    hub.repos["venketh/SlimPajama-62B"] = {"main": {"README.md": b"#"}}
    done = command(*words, cwd=tmp_path, **env(hub, tmp_path))
    assert "venketh/SlimPajama-62B: no validation/chunk*.jsonl.zst there" in last_line(done)
    hub.repos["cerebras/SlimPajama-627B"] = {"main": {"README.md": b"#"}}  # comes first where it is there
    done = command(*words, cwd=tmp_path, **env(hub, tmp_path))
    assert "cerebras/SlimPajama-627B: no validation/chunk*.jsonl.zst there" in last_line(done)
    refused(call("data.py", "pile"), "--train-tokens")
    for words in (["a.jsonl"], ["--val-share", "0.1"], ["--tokenizer", "bytes"]):
        refused(call("data.py", "pile", *words, "--train-tokens", "9"), "neither FILES nor --tokenizer nor --val-share")
    assert not list((tmp_path / "data").glob("[!.]*"))


@pytest.mark.slow
def test_a_run_prepares_what_the_hub_has_and_ones_own_text_in_its_tokens(corpora_hub, tmp_path):
    (tmp_path / "notes.txt").write_text("".join(texts("new", 400)))
    words = ["train.py", "--init", "scratch", "--model", "nano", "--context", "64", "--device", "cpu"]
    words += ["--upstream", "pile", "--downstream", "notes.txt", "--eval-tokens", "128"]
    commands = [[*words, "--tokens", n] for n in ("2e9", "4096", "8192")]
    too_long, done, longer = calls(commands, tmp_path, **env(corpora_hub, tmp_path))
    assert too_long.returncode == 2 and "`python data.py pile --train-tokens" in last_line(too_long)
    assert done.returncode == longer.returncode == 0, done.stderr + longer.stderr
    assert "upstream " in done.stdout
    assert json.loads((tmp_path / "data/pile/meta.json").read_text())["train"]["tokens"] == 4096
