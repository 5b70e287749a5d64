"""The hub, without network: the real client against a small server on the loopback, in processes of their own."""

import functools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import zstandard
from conftest import WHEREVER, call, command, refused, texts, well
from test_corpora import small_spec, tokenizer_file
from test_model import small
from test_texts import flags_of
from tqdm import tqdm

import corpora.hub
import data
from corpora import readers
from corpora.tokenizer import byte_tokenizer
from engine.faults import hub_or_network
from eval import token_losses
from model import GPTNeoX, config_of

SHA = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9"}
CONTINUE = ["train.py", *WHEREVER, "--max-lr", "1e-3", "--init"]


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's HTTP as huggingface_hub needs to resolve a revision, list and download files."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos = {}  # "owner/name" -> {revision: {file: bytes}}
        self.gated, self.downloads = set(), []
        self.cuts, self.shorts = {}, {}  # file: how many answers hang up half-way, how many are half as long as asked
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = lambda *_: None

    def reply(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, code, kind):
        self.reply(code, b'{"error": "no"}', X_Error_Code=kind, X_Error_Message="no")

    def do_GET(self):
        hub, where = self.server, re.match("/(api/)?(?:(?:models|datasets)/)?([^?]*)", self.path)
        api, path = where[1], where[2].strip("/").split("/")
        repo = "/".join(path[:2])
        if repo in hub.gated:
            return self.fail(403, "GatedRepo")
        if repo not in hub.repos:
            return self.fail(401, "RepoNotFound")
        revision, revisions = path[3] if len(path) > 3 else "main", hub.repos[repo]
        commits = {f"{SHA[:-2]}{number:02d}": name for number, name in enumerate(revisions)}
        revision = commits.get(revision, revision)
        if revision not in revisions:
            return self.fail(404, "RevisionNotFound")
        files, commit = revisions[revision], f"{SHA[:-2]}{list(revisions).index(revision):02d}"
        file = "/".join(path[4:])
        if api:
            answer = {"id": repo, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            if len(path) > 2 and path[2] in ("tree", "paths-info"):
                rows = [{"type": "file", "path": f, "size": len(b), "oid": str(len(b))} for f, b in files.items()]
                answer = [row for row in rows if row["path"].startswith(file)]
            if self.command == "POST":
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
                answer = [row for row in answer if row["path"] in str(asked)]
            return self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")
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
        part, ranged = body[start : end + 1], 200
        if len(part) < len(body):
            headers["Content_Range"], ranged = f"bytes {start}-{end}/{len(body)}", 206
        if hub.cuts.get(file, 0) > 0:  # promise everything, send half, hang up
            hub.cuts[file] -= 1
            self.reply(ranged, part[: len(part) // 2], Content_Length=str(len(part)), **headers)
            self.close_connection = True
            return None
        return self.reply(ranged, part, **headers)

    do_HEAD = do_POST = do_GET


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def saved(folder, config, seed=0):
    """The files of a model, saved in a folder."""
    GPTNeoX(config, seed=seed).save_pretrained(folder)
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@pytest.fixture
def repo(hub, tmp_path):
    more = {"README.md": b"#", "pytorch_model.bin": b"pickle", "tf_model.h5": b"0"}  # that no one needs
    more |= {"tokenizer.json": json.dumps(byte_tokenizer()).encode()}
    config, folder = small(vocab_size=260, max_position_embeddings=64), tmp_path / "saved"
    hub.repos["me/small"] = {name: saved(folder, config, seed) | more for seed, name in enumerate(("main", "step10"))}
    return hub


def ask(hub, *words, **more):
    """The finished command in the present folder; its client asks this server, and keeps its cache here."""
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path.cwd() / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return command(*words, **env | more)


@pytest.mark.slow
def test_a_revision_is_resolved_downloaded_and_continued(repo, house):
    well(ask(repo, *CONTINUE, "me/small", "--revision", "step10", "--out", "r"))
    assert set(repo.downloads) == {"config.json", "model.safetensors", "tokenizer.json"}  # only what is needed
    first = GPTNeoX(GPTNeoX.from_pretrained("r/checkpoints/step_00000020").config, seed=1)
    loss = token_losses(first, data.fixed_windows(data.Corpus("old"), 32, 256), 8).mean().item()
    start = json.loads((house / "r/metrics.jsonl").read_text().splitlines()[0])
    assert start["upstream_loss"] == pytest.approx(loss, rel=1e-6)
    # And again from the cache, with the server gone or the hub switched off.
    for offline in ({"HF_HUB_OFFLINE": "1"}, NOWHERE):
        well(ask(repo, "eval.py", "sample", "me/small", "--revision", "step10", "--tokens", "1", **offline))


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
    for says, words in cases.items():
        assert says in last_line(ask(repo, *CONTINUE, *words))
    for more in ({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}, NOWHERE):
        line = last_line(ask(repo, *CONTINUE, "me/small", **more))
        assert "me/small: no folder of this name here" in line and "local disk" in line
    assert not [*house.glob("runs/*")] and "pytorch_model.bin" not in repo.downloads


@pytest.mark.slow
def test_a_download_that_is_cut_short_goes_on(repo, house):
    repo.cuts["model.safetensors"] = 1
    done = ask(repo, *CONTINUE, "me/small", "--out", "r")
    if done.returncode:  # the client gave up, in one line; the same command goes on
        assert "Traceback" not in done.stderr, done.stderr
        well(ask(repo, *CONTINUE, "me/small", "--out", "r"))
    assert repo.downloads.count("model.safetensors") == 2


def test_neox_tokenizer_and_lambada_come_from_the_hub(repo, house):
    repo.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": json.dumps(small_spec()).encode()}}
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"the thing {i}"}) + "\n" for i in range(99)))
    rows = "".join(json.dumps({"text": f"over {i} and under the river"}) + "\n" for i in range(5)).encode()
    repo.repos["EleutherAI/lambada_openai"] = {"main": {"data/lambada_test_en.jsonl": rows}}
    well(ask(repo, "data.py", "mine", "a.jsonl"))
    found = json.loads(well(ask(repo, "eval.py", "lambada", "me/small", "--json")).stdout)
    assert found["texts"] == 5 and found["perplexity"] > 1


def test_without_the_hub_a_missing_neox_tokenizer_is_one_line_at_once(house):
    Path("a.jsonl").write_text('{"text": "a"}\n')
    for more in ({}, {"HF_HUB_OFFLINE": "1"}, {"ALL_PROXY": "socks5://127.0.0.1:9"}):
        begun = time.time()
        done = command("data.py", "mine", "a.jsonl", **NOWHERE, HF_HOME=str(house / "cache"), **more)
        refused(done, "no neox tokenizer here or on the hub", "--tokenizer bytes, or a tokenizer.json")
        assert time.time() - begun < 10


@pytest.mark.slow
def test_a_checkpoint_of_the_hub_continues_on_its_own_tokens(repo, house, monkeypatch):
    Path("t.json").write_text(json.dumps(small_spec()))
    monkeypatch.setattr(readers, "EMBEDDED_BYTES", 300_000)
    for name in ("stdlib-neox", "torch-neox"):
        data.prepare(name, tokenizer="t.json")  # as the first use does with Pythia's tokenizer
    files = saved("larger", small(vocab_size=300)) | {"tokenizer.json": Path("t.json").read_bytes()}
    repo.repos["me/small"] = {"main": files}
    words = ["--init", "me/small", "--max-lr", "1e-3", "--tokens", "512", "--eval-tokens", "64"]
    well(ask(repo, "train.py", *words, "--out", "r"))
    flags = json.loads(Path("r/config.json").read_text())["flags"]
    assert (flags["upstream"], flags["downstream"]) == ("stdlib-neox", "torch-neox")


def test_the_defaults_are_the_papers_whatever_a_model_is_called(repo, house):
    """The peak of its size's pre-training, 1 % warm-up, cosine to a tenth, no replay: by id or in a folder."""
    repo.repos["EleutherAI/pythia-410m"] = {"main": saved("pythia-410m", config_of("nano", 300))}
    words = ["train.py", "--upstream", "old", "--downstream", "new", "--dry-run", "--tokens"]
    for tokens in (10**6, 10**12):
        by_id = ask(repo, *words, tokens, "--init", "EleutherAI/pythia-410m")
        for flags in map(flags_of, (by_id, call(*words, tokens, "--init", "pythia-410m"))):
            assert (flags["max_lr"], flags["min_lr"], flags["warmup"], flags["replay"]) == (8e-3, 8e-4, 0.01, 0.0)
            assert flags["schedule"] == "cosine"


def sample(name, count):
    """Rows as the hub has them, made up with the same fields."""
    domains = {"pile": ["Pile-CC", "Github"], "redpajama": ["RedPajamaC4", "RedPajamaArXiv"]}[name]
    made = enumerate(texts("old", count))
    return [json.dumps({"text": t, "meta": {f"{name}_set_name": domains[i % 2]}}).encode() + b"\n" for i, t in made]


@pytest.fixture
def corpora_hub(hub, tmp_path):
    """Both corpora in their real layouts, and the tokenizer."""
    hub.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": tokenizer_file(tmp_path).read_bytes()}}
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
    return hub


@pytest.mark.slow
def test_the_pile_comes_in_pythias_own_rows(corpora_hub, empty):
    corpora_hub.cuts["document-00000-of-00020.bin"] = corpora_hub.shorts["document-00001-of-00020.bin"] = 1
    well(ask(corpora_hub, "data.py", "pile", "--train-tokens", 50 * 2048, "--val-tokens", "3000"))
    corpus = data.Corpus("pile")
    expected = corpora_hub.rows[:50, :2048]  # in order, over the border of two files
    assert np.array_equal(corpus.splits["train"].reshape(-1, 2048), expected)
    assert 3000 <= corpus.meta["val"]["tokens"] < 60_000
    assert corpus.meta["train"]["bytes_of_text"] == 50 * 2048  # these ids are single bytes
    first = "EleutherAI/pile-deduped-pythia-preshuffled/document-00000-of-00020.bin"
    assert corpus.meta["sources"][:2] == ["EleutherAI/pile_val_test/val.jsonl", first]


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
    well(ask(corpora_hub, "data.py", "slimpajama", "--train-tokens", "1e9", "--by-domain", "--processes", "2"))
    metas = [data.Corpus(folder.name).meta for folder in Path("data").glob("slimpajama-*")]
    found = [sum(meta[split]["documents"] for meta in metas) for split in ("train", "val")]
    assert found == [80, 40]  # the official validation files, and only they
    assert (empty / "data/slimpajama-redpajamaarxiv/meta.json").exists()
    assert not list((empty / "cache").rglob("*.zst"))  # shards are read, not kept


def test_a_corpus_that_the_hub_does_not_have(hub, empty):
    hub.repos["EleutherAI/pythia-410m-deduped"] = {"main": {"tokenizer.json": json.dumps(byte_tokenizer()).encode()}}
    words = ["data.py", "slimpajama", "--train-tokens", "1e6"]
    line = last_line(ask(hub, *words))
    assert "Repository Not Found for url" in line and "venketh/SlimPajama-62B" in line
    assert "socks" in last_line(ask(hub, *words, ALL_PROXY="socks5://127.0.0.1:9"))  # the tokenizer is in the cache
    for name in ("venketh/SlimPajama-62B", "cerebras/SlimPajama-627B"):  # the latter comes first where it is there
        hub.repos[name] = {"main": {"README.md": b"#"}}
        assert f"{name}: no validation/chunk*.jsonl.zst there" in last_line(ask(hub, *words))
    refused(call("data.py", "pile"), "--train-tokens")
    for words in (["a.jsonl"], ["--val-share", "0.1"], ["--tokenizer", "bytes"]):
        refused(call("data.py", "pile", *words, "--train-tokens", "9"), "neither FILES nor --tokenizer nor --val-share")
    assert not list(Path("data").glob("[!.]*"))


@pytest.mark.slow
def test_a_run_prepares_what_the_hub_has_and_ones_own_text_in_its_tokens(corpora_hub, empty):
    Path("notes.txt").write_text("".join(texts("new", 400)))
    words = ["train.py", "--init", "scratch", "--model", "nano", "--context", "64", "--device", "cpu"]
    words += ["--upstream", "pile", "--downstream", "notes.txt", "--eval-tokens", "128"]
    assert "`python data.py pile --train-tokens" in last_line(ask(corpora_hub, *words, "--tokens", "2e9"))
    assert "upstream " in well(ask(corpora_hub, *words, "--tokens", "4096")).stdout
    well(ask(corpora_hub, *words, "--tokens", "8192"))
    assert json.loads(Path("data/pile/meta.json").read_text())["train"]["tokens"] == 4096
