# Copyright 2026 The URFM developers. Licensed under the Apache License, Version 2.0.
"""Tables and pictures of a report as Markdown."""

from collections.abc import Iterable, Sequence


NONE = "–"


def picture(name: str, drawn: Sequence[str], words: str) -> str:
    return f"![{words}]({name})" if name in drawn else ""


def folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def cells_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """Rows of `tables.py` in those columns that any of them has; "" where none has any."""
    columns = {key: words for key, words in columns.items() if any(key in row["cells"] for row in rows)}
    rows = [row for row in rows if any(key in row["cells"] for key in columns)]
    if not columns:
        return ""
    return table(
        ["", *columns.values()], [[row["label"], *(cell(row["cells"].get(key)) for key in columns)] for row in rows]
    )


def cell(of: dict | None, sign: str = "") -> str:
    """An `Estimate.cell` as "61.8 ± 1.2<br>56.4 to 65.8"; `sign` "+" shows that of positive numbers too."""
    if of is None or of["value"] is None:
        return NONE
    low, high = of["ci95"]
    spread = "" if of["sd"] is None else f" ± {of['sd']:.1f}"
    return f"{of['value']:{sign}.1f}{spread}<br>{low:{sign}.1f} to {high:{sign}.1f}"


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
