"""Pages of the documentation: their code blocks, and how each kind of block is run."""

from __future__ import annotations

import ast
import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from typer.main import get_command

from ppdmodel.cli import run
from ppdmodel.cli.app import app_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "theory/*.md", "data/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^( *)(`{3,})(\S*)[^\n]*\n(.*?)^ *\2 *$", flags=re.DOTALL | re.MULTILINE)
#: commands that are read here but not run: they need every core, or the real model for minutes.
#: The tests named run them, on the real model or on a tiny one.
RUN_ELSEWHERE = {
    "time": "tests/pipeline/test_commands.py::test_the_default_model_from_time_to_validation",
    "validate": "tests/pipeline/test_commands.py::test_the_default_model_from_time_to_validation",
    "decode": "tests/pipeline/test_commands.py::test_decode_by_command",
    "train-exits": "tests/measure/training/test_train.py"
    "::test_from_training_to_measuring_by_command",
}
#: commands that are run with a tiny model in place of the one that the page names
TINY = ("measure",)
MAKE = re.compile(r"^([a-z-]+):", flags=re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its kind, such as sh, and its text, without the fence's indentation."""

    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    return [Block(m[3], re.sub(rf"^{m[1]}", "", m[4], flags=re.M)) for m in FENCE.finditer(text)]


def command_lines(text: str) -> list[str]:
    """The lines of a shell block, continued ones joined, comments taken off."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s+)#.*$", "", line).strip())]


def parse(arguments: list[str]) -> None:
    """Read a command's arguments without running it; a usage error if they are not its own."""
    command: Any = get_command(app_of())
    at = 0
    while hasattr(command, "commands"):
        command, at = command.commands[arguments[at]], at + 1
    command.make_context(" ".join(arguments[:at]), arguments[at:])


def check_elsewhere(line: str) -> None:
    """Check a line that is no command of ours: a make target, or the installation."""
    words = shlex.split(line)
    if words[0] == "make":
        assert words[1] in MAKE.findall((ROOT / "Makefile").read_text("utf-8")), line
    else:
        extra = re.fullmatch(r"pip install -c constraints\.txt -e '\.\[(\w+)\]'", line)
        assert extra, f"this line is neither run nor declared: {line}"
        assert f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text("utf-8")


@dataclass
class Reader:
    """Runs a page's blocks in order, in a folder with the files that the page starts from."""

    folder: Path
    tiny: Path
    names: dict[str, Any] = field(default_factory=dict)
    printed: list[str] | None = None

    def follow(self, page: str) -> None:
        """Run every block of a page; one that is neither run nor declared is an error."""
        found = blocks(page)
        for block, after in zip(found, [*found[1:], Block("end", "")], strict=True):
            if block.kind == "sh":
                self.shell(block.text, shown=after.kind == "text")
            elif block.kind == "text":
                assert self.printed is not None, f"{page}: nothing printed {block.text}"
                assert self.printed == block.text.splitlines()
                self.printed = None
            elif block.kind == "python":
                self.python(block.text)
            elif block.kind == "csv":
                (self.folder / "counts.csv").write_text(block.text, "utf-8")
                self.shell(self.inline_command(page, "--table counts.csv"), shown=False)
            else:
                assert block.kind.startswith("{") or (page, block.kind) in DECLARED, (page, block)

    def shell(self, text: str, *, shown: bool) -> None:
        """Run a shell block; `shown` says that its output is on the page."""
        lines = command_lines(text)
        assert not shown or len(lines) == 1
        for line in lines:
            if not line.startswith("ppdmodel "):
                check_elsewhere(line)
                continue
            for shard in (1, 2) if "$SLURM_ARRAY_TASK_ID" in line else (0,):
                own = line.replace("$SLURM_ARRAY_TASK_ID/8", f"{shard}/2")
                own = own.replace("$SLURM_ARRAY_TASK_ID", str(shard))
                self.command(shlex.split(own)[1:], shown=shown)

    def command(self, arguments: list[str], *, shown: bool) -> None:
        """Run one command of ours, or its substitute."""
        if arguments[0] in RUN_ELSEWHERE:
            assert not shown, "an output that is shown must be made here"
            parse(arguments)
            return
        if arguments[0] in TINY:
            assert not shown, "an output that is shown must be made here"
            parse(arguments)
            arguments = self.tiny_measure(arguments)
        elif arguments[0] == "fit" and not shown:
            arguments = [*arguments, "--resamples", "40"]
        arguments = [part for word in arguments for part in self.expanded(word)]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(arguments)
        assert code == 0, (arguments, err.getvalue())
        self.printed = [line.rstrip() for line in out.getvalue().splitlines()] if shown else None

    def expanded(self, word: str) -> list[str]:
        """File names for a pattern, as a shell gives them."""
        if "*" not in word:
            return [word]
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(word))

    def tiny_measure(self, arguments: list[str]) -> list[str]:
        """The same measurement of a tiny model, few tokens, beside results that are there."""
        given = dict(pairwise(arguments))
        out = given["--out"]
        kept = {"--model": str(self.tiny), "--out": f"made/{out}" if Path(out).exists() else out}
        kept |= {"--max-new-tokens": "3", "--batch-size": "1"}
        words = [w for w in arguments if w == "--raw"]
        kept["--prompts"] = given.get("--prompts", "notes.txt")
        if "--shard" in given:
            kept["--shard"] = given["--shard"]
        return ["measure", *words, *(part for pair in kept.items() for part in pair)]

    def inline_command(self, page: str, part: str) -> str:
        """The one command in the text of a page that has this part."""
        commands = [c for c in inline_commands(page) if part in c]
        assert len(commands) == 1, (page, part)
        return commands[0]

    def python(self, code: str) -> None:
        """Run Python; where a line is an expression, its comment is its value, or plain words."""
        lines = code.splitlines()
        for statement in ast.parse(code).body:
            source = ast.get_source_segment(code, statement)
            assert source is not None
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                source = "\n".join(lines[_first_line(statement) - 1 : statement.end_lineno])
            comment = lines[(statement.end_lineno or 1) - 1].partition("  # ")[2]
            if not isinstance(statement, ast.Expr):
                exec(source, self.names)
                continue
            value = eval(source, self.names)
            if comment and not re.fullmatch(r"[a-z]+( [a-z]+)*", comment):
                assert str(value) == comment, source


def _first_line(statement: ast.FunctionDef | ast.ClassDef) -> int:
    return min([statement.lineno, *(decorator.lineno for decorator in statement.decorator_list)])


def inline_commands(page: str) -> list[str]:
    """Commands of ours, with options, that stand in the text of a page."""
    text = FENCE.sub("", (ROOT / page).read_text("utf-8"))
    found = re.findall(r"(?<!`)`(ppdmodel [a-z-]+ [^`]+)`", text)
    return [" ".join(command.split()) for command in found]


#: blocks that are not run, and the test that checks each
DECLARED = {
    (
        "theory/01-setting.md",
        "",
    ): "tests/simulation/test_schedule.py::test_one_match_and_one_miss_by_hand",
    (
        "docs/architecture.md",
        "",
    ): "tests/docs/test_architecture.py::test_the_tree_names_exactly_the_modules_that_exist",
    ("docs/citing.md", "bibtex"): "tests/docs/test_pages.py::test_the_citation_is_that_of_the_file",
}
