"""The documents: every page is reached, every public name explained, links lead somewhere, code in them is right."""

import argparse
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import xpkern
from xpkern.cli.command_line import build_parser, command_parsers

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "bench/NOTES.md", "xpkern/model/data/default_card.md")),
]
#: Pages that Sphinx makes of documents elsewhere.
MADE_OF = runpy.run_path(str(DOCS / "conf.py"))["repository_pages"]

CODE = re.compile(r"^(`{3,})(\w*|\{[^}]*\})\n(.*?)^\1$", flags=re.M | re.S)


def blocks(page, language):
    return [code for _, of, code in CODE.findall(page.read_text()) if of == language]


def prose(document):
    return CODE.sub("", document.read_text())


def anchors(document):
    """Names of a document's headings, as code hosts and MyST make them."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def name(document):
    return str(document.relative_to(ROOT))


def test_every_page_is_in_the_table_of_contents():
    entries = [
        line
        for toctree in blocks(DOCS / "index.md", "{toctree}")
        for line in toctree.split()
        if not line.startswith(":") and (DOCS / f"{line}.md").is_file()
    ]
    assert sorted(entries) == sorted(
        str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if page.stem != "index"
    )


def test_every_public_name_is_documented():
    documented = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", (DOCS / "api.md").read_text(), flags=re.M)
    short = [each for each in documented if "." not in each]
    assert sorted([*short, "__version__"]) == sorted(xpkern.__all__), "docs/api.md has not what xpkern.__all__ has"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings_that_exist(document):
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(document)):
        if re.match(r"\w+:", link):
            continue
        target = document if not link else (document.parent / link)
        assert target.exists(), f"a link to {link}"
        if anchor:
            made_of = MADE_OF.get(target.stem) if target.parent == DOCS else None
            assert anchor in anchors(ROOT / made_of if made_of else target), f"a link to {link}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_documents_name_only_files_that_exist(document):
    for file in re.findall(r"`((?:xpkern|csrc|tests|bench|docs|examples)/[\w./-]*)`", document.read_text()):
        assert (ROOT / file).exists(), f"{file} is named"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_in_documents_have_their_options(document):
    commands = {parser.prog: parser for parser in command_parsers(build_parser())}
    for code in blocks(document, "bash"):
        for line in re.findall(r"\bxpkern [a-z][^#|&;\n]*", code.replace("\\\n", " ")):
            words = line.split()
            names = [" ".join(words[:count]) for count in (3, 2)]
            command = next((name for name in names if name in commands), None)
            assert command, f"there is no such command: {line}"
            options = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
            assert options <= set(commands[command]._option_string_actions), line


def test_commands_of_commands_are_found():
    parser = argparse.ArgumentParser(prog="a")
    inner = parser.add_subparsers().add_parser("b")
    inner.add_subparsers().add_parser("c")
    inner.further = [argparse.ArgumentParser(prog="a b d")]
    assert [command.prog for command in command_parsers(parser)] == ["a b", "a b c", "a b d"]


def test_every_package_is_on_the_map_of_the_folders():
    folders = (DOCS / "folders.md").read_text()
    packages = {path.parent.relative_to(ROOT) for path in (ROOT / "xpkern").rglob("__init__.py")}
    assert [str(package) for package in packages if f"`{package}/`" not in folders] == []


@pytest.mark.parametrize("page", ["arrays", "engine"])
def test_code_of_a_how_to_runs(page):
    session = {}
    for code in blocks(DOCS / "howto" / f"{page}.md", "python"):
        exec(code, session)
    if page == "arrays":
        fit, truth = session["fit"], session["truth"]
        assert fit.fitted.all()
        error = np.sqrt(np.diagonal(fit.cov, axis1=1, axis2=2))
        assert (abs(fit.params - truth) < 0.5 * error).all(), "fluxes without noise: only the prior pulls"
        no_terms = xpkern.LossTerms(prior=False, jacobian_ext=False, jacobian_plx=False)
        alone = xpkern.fit(session["obs"], session["model"], session["prior"], terms=no_terms)
        assert (abs(alone.params - truth) < 0.02 * error).all(), "without the prior nothing does"
    else:
        assert session["engine"].stars == 1
        assert session["flux"].shape == (1, 66)


RUN_PAGE = runpy.run_path(str(DOCS / "make_tutorial.py"))["run_page"]
WORDS = runpy.run_path(str(DOCS / "make_tutorial.py"))["words"]


def page_of(language, code, printed):
    return f"<!-- run -->\n```{language}\n{code}\n```\n<!-- prints -->\n```text\n{printed}\n```"


@pytest.mark.parametrize(("language", "code"), [("bash", "echo $((1 + 2)) stars"), ("python", "print(1 + 2, 'stars')")])
def test_a_tutorial_shows_what_its_commands_print(tmp_path, language, code):
    assert RUN_PAGE(page_of(language, code, "nothing"), tmp_path) == page_of(language, code, "3 stars")


def test_a_tutorial_whose_command_fails_is_no_tutorial(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3"):
        RUN_PAGE(page_of("bash", "(exit 3)\necho later", ""), tmp_path)


def test_a_tutorial_is_compared_without_its_digits():
    assert WORDS("1,250 stars  -0.3\n-----") == WORDS(" 980 stars 12e-5\n---")
    assert WORDS("12 stars") != WORDS("12 stones")
