"""Every Python block of the README and of docs/ runs: in order, in one namespace per page, in an empty folder.

A block of ```output is what the Python block above it prints (`...` stands for anything); a block of ```python excerpt
quotes ops.py; a block of ```python needs torch runs where torch is installed.
"""

import doctest
import importlib.util
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis.internal.conjecture import providers

import tinygrad_mnist
from tinygrad_mnist.core import F

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]

# What a block may be called and is then not run. Any other name fails, or a misspelt "python" would pass for text.
NOT_PYTHON = {"bash", "console", "json", "mermaid", "text", "toml"}


class Block(NamedTuple):
    language: str
    line: int  # of the first line of code, counted from 1
    code: str


def fenced_blocks(markdown: str) -> list[Block]:
    """The blocks fenced by ``` in `markdown`, without their fences and common indentation."""
    blocks: list[Block] = []
    fence = None
    for number, line in enumerate(markdown.splitlines(), start=1):
        mark = re.match(r"\s*```+", line)
        if fence is None and mark:
            fence, language, start, code = mark[0].strip(), line[mark.end() :].strip(), number + 1, []
        elif mark and line.strip() == fence:
            blocks.append(Block(language, start, textwrap.dedent("\n".join(code))))
            fence = None
        elif fence is not None:
            code.append(line)
    assert fence is None, f"the block that opens above line {start} is never closed"
    return blocks


@pytest.fixture
def own_examples(monkeypatch):
    """Hypothesis draws numbers that stand in the source of any module that happens to be imported, where its version
    has that pool. What a page prints is not to change with them."""
    if hasattr(providers, "_get_local_constants"):
        pool = providers.Constants()
        monkeypatch.setattr(providers, "_get_local_constants", lambda: pool)
        monkeypatch.setattr(providers, "CONSTANTS_CACHE", type(providers.CONSTANTS_CACHE)(1024))


@pytest.mark.usefixtures("own_examples")
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")  # which a page is about
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(F, "__dict__", dict(vars(F)))  # what a page registers goes with it
    namespace = {"__name__": "__main__"}
    printed = ""
    for block in fenced_blocks(page.read_text(encoding="utf-8")):
        needs = re.fullmatch(r"python(?: needs (\w+))?", block.language)
        if needs and needs[1] and not importlib.util.find_spec(needs[1]):
            continue
        if needs:
            # Under its own file name and line, so that a traceback points into the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, namespace)
            printed = capsys.readouterr().out
        elif block.language == "output":
            same = doctest.OutputChecker().check_output(block.code + "\n", printed, doctest.ELLIPSIS)
            assert same, f"{page}:{block.line}: the block above prints\n{printed}"
        elif block.language == "python excerpt":
            rules = Path(tinygrad_mnist.ops.__file__).read_text(encoding="utf-8")
            for part in block.code.split("\n\n"):
                assert f"\n{part}\n" in rules, f"{page}:{block.line}: not in ops.py:\n{part}"
        else:
            assert block.language in NOT_PYTHON, f"{page}:{block.line - 1}: is a {block.language!r} block to be run?"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    files = [(page.parent / link).resolve().relative_to(ROOT) for link in links if "://" not in link]
    places = ROOT, Path(tinygrad_mnist.__file__).parent.parent  # the package may be an installed one
    assert [file for file in files if not any((at / file).exists() for at in places)] == []


def test_readme_lists_operations_that_exist():
    section = README.read_text(encoding="utf-8").partition("## Operations")[2].partition("- Runs unchanged")[0]
    names = " ".join(re.findall(r"^- [\w, ]+:\s+`([\w\s]+)`", section, re.MULTILINE)).split()
    assert len(names) > 100
    assert [name for name in names if not callable(getattr(tinygrad_mnist, name, None))] == []


def test_readme_opens_with_its_two_commands_and_shows_python():
    blocks = fenced_blocks(README.read_text(encoding="utf-8"))
    assert len(blocks[0].code.splitlines()) == 2
    assert blocks[0].language != "python"
    assert any(block.language == "python" for block in blocks)


def test_blocks_are_found_where_they_stand():
    page = "a\n```python\nx = 1\n\ny = 2\n```\n- b\n\n  ```bash\n  ls\n  ```\n````text\n```\n````\n"
    blocks = [Block("python", 3, "x = 1\n\ny = 2"), Block("bash", 10, "ls"), Block("text", 13, "```")]
    assert fenced_blocks(page) == blocks
