# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""The guides read as a checker reads them: code blocks, links, headings, commands."""

import ast
import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)
SCRIPT = re.compile(r"^(recipes|tests|hub_cards)/\S+\.py$")
# A line of a docstring or comment that is a command, whatever variables are set before it.
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:python3?|accelerate|torchrun|pytest|pip|hf|bash) \S")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" where none is said), text, and the line of the file it begins at."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One command: the words before the script (a launcher's), the script or program, the words after it."""

    before: tuple[str, ...]
    program: str
    after: tuple[str, ...]
    where: str

    @property
    def flags(self) -> list[str]:
        """What is asked of the program; what stands behind a lone `--` is for another one."""
        return flags_of(self.after)


def flags_of(words) -> list[str]:
    words = list(words)
    words = words[: words.index("--")] if "--" in words else words
    return [word.split("=")[0] for word in words if re.match(r"--[a-zA-Z]", word)]


def kept_files() -> list[Path]:
    """Files that are, or could be, in the repository: git's own and those that it doesn't ignore, without deleted ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in sorted(set(listed.stdout.splitlines())) if (path := ROOT / name).is_file()]


def guides() -> list[Path]:
    """Every Markdown file but the Jinja templates of cards, whose text is not whole before it is filled."""
    found = [path for path in kept_files() if path.suffix == ".md"]
    return [path for path in found if "{{ card_data }}" not in path.read_text() and "{%" not in path.read_text()]


def text_of(path: Path) -> str:
    """A guide's Markdown; of a notebook that of its text cells."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks(text: str) -> list[Block]:
    """Fenced code blocks of Markdown, in order."""
    found = []
    for match in FENCE.finditer(text):
        indent = match["indent"]
        lines = (line.removeprefix(indent) for line in match["text"].splitlines())
        found.append(Block(match["language"].lower(), "\n".join(lines) + "\n", text[: match.start()].count("\n") + 2))
    return found


def prose(text: str) -> str:
    """Markdown without its fenced blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Targets of the links and pictures of the prose, those in HTML too."""
    plain = re.sub(r"`[^`\n]*`", "", prose(text))
    return re.findall(r"<\w+ [^>]*?(?:src|href)=\"([^\"]+)\"", plain) + re.findall(
        r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", plain
    )


def anchors(text: str) -> set[str]:
    """Where a link into a file may point: its headings as GitHub turns them into ids, and explicit ids."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        if number:
            found.setdefault(f"{slug}-{number}", 1)
    return set(found) | set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text))


def code_spans(text: str) -> list[str]:
    """Inline code of the prose, each on one line."""
    paragraphs = re.split(r"\n\s*\n", prose(text))  # a lone backtick spoils no more than its paragraph
    found = [span for paragraph in paragraphs for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", paragraph)]
    return [" ".join(span.split()) for span in found]


def commands(text: str, where: str) -> list[Command]:
    """The commands of a piece of shell, those inside a quoted `bash -c` too."""
    found = []
    for words in _commands_as_words(text):
        found += [command for word in words if "\n" in word for command in commands(word, where)]
        words = [word for word in words if "\n" not in word]
        while words and re.match(r"^[A-Za-z_]\w*=", words[0]):
            words = words[1:]
        words = words[1:] if words[:1] == ["exec"] else words
        if not words:
            continue
        at = next((i for i, word in enumerate(words) if SCRIPT.match(word)), None)
        if at is None:
            found.append(Command((), words[0], tuple(words[1:]), where))
        else:
            found.append(Command(tuple(words[:at]), words[at], tuple(words[at + 1 :]), where))
    return found


def _commands_as_words(text: str):
    """Words of each command. A line's end ends a command, unless a backslash or an open quote stands before it."""
    lexer = shlex.shlex(_without_comments(text.replace("\\\n", " ")), posix=True, punctuation_chars="&|;\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for token in lexer:
        if set(token) <= set("&|;\n"):
            if words:
                yield words
            words = []
        else:
            words.append(token)
    if words:
        yield words


def _without_comments(text: str) -> str:
    """Shell without what stands behind a `#` that is not quoted: an apostrophe there would open a quote."""
    kept, quote, comment = [], "", False
    for at, sign in enumerate(text):
        if comment:
            comment = sign != "\n"
        elif not quote and sign == "#" and (at == 0 or text[at - 1].isspace()):
            comment = True
        elif quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        if not comment:
            kept.append(sign)
    return "".join(kept)


def commands_of(path: Path) -> list[Command]:
    """Every command that a file shows: of Markdown its shell blocks and inline code, of Python its docstring, of YAML its
    comments."""
    text, name = text_of(path), path.relative_to(ROOT).as_posix()
    found = []
    if path.suffix in (".md", ".ipynb"):
        for block in blocks(text):
            if block.language in ("", "bash", "sh", "shell"):
                found += commands(block.text, f"{name}:{block.line}")
        pieces = code_spans(text)
    elif path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text)) or ""
        lines = docstring.replace("\\\n", " ").splitlines()
        pieces = [line for line in lines if line.startswith("    ")] + code_spans(docstring)
    else:
        pieces = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and ".py" in line]
    for piece in map(str.strip, pieces):
        if COMMAND.match(piece) or re.match(r"^(recipes|tests)/\S+\.py --", piece):
            found += commands(piece, name)
    return found
