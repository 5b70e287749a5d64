"""What a repository promises beside its code: one version, and pages whose links and numbers are right."""

import re

import pytest
from conftest import ROOT

from engine import VERSION
from paper.__main__ import PAGES as WITH_TABLES
from paper.__main__ import TABLE, made_anew

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")]


def test_the_version_is_one():
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == VERSION
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == VERSION


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", WITH_TABLES)
def test_every_table_is_what_the_packs_say(page, monkeypatch):
    """Each table of the pages names the command that makes it from paper/results, and is its output."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert TABLE.search(text) and TABLE.sub(made_anew, text) == text


def test_every_difference_in_the_prose_is_in_a_table():
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in WITH_TABLES}
    lines = [line for text in pages.values() for line in text.splitlines()]
    tables = " ".join(line for line in lines if line.startswith("|"))  # those by hand are recomputed in test_paper.py
    for page, text in pages.items():
        prose = " ".join(line for line in text.splitlines() if not line.startswith("|"))
        for number in re.findall(r"[+-]\d\.\d{3}", prose):
            assert number in tables, f"{page}: {number}"
