"""What mkdocs does not do itself: pages generated from the program, and the results of the benchmarks as pages."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
# Helps are wrapped to the terminal's width.
os.environ["COLUMNS"] = "100"


def on_files(files: Files, config: Any) -> Files:
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        page = File.generated(config, f"{RESULTS}/{path.name}", content=path.read_text())
        if path.name != "README.md":
            page.inclusion = page.inclusion.NOT_IN_NAV
        files.append(page)
    files.append(File.generated(config, "reference/commands.md", content="\n".join(_commands())))
    files.append(File.generated(config, "reference/trainers.md", content="\n".join(_trainers())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links are those that hold in the repository; what the site lacks is named instead."""
    here = page.file.src_uri
    # where the page stands in the repository
    folder = posixpath.dirname(here if here.startswith("benchmarks/") else f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups("")
        full = posixpath.normpath(posixpath.join(folder, target))
        if full.startswith("docs/"):
            full = full.removeprefix("docs/")
        elif not (full.startswith(f"{RESULTS}/") and full.endswith(".md")):
            return f"{text} (`{full}`)"
        return f"[{text}]({posixpath.relpath(full, posixpath.dirname(here))}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)


def _commands() -> Iterator[str]:
    from nnunet_godc.cli import build_parser

    yield "# Commands\n"
    yield "What `--help` prints. Training and prediction go through nnU-Net's own commands.\n"
    yield from _described(build_parser(), "nnunet-godc", level=2)


def _described(parser: argparse.ArgumentParser, name: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from _described(command, f"{name} {word}", min(level + 1, 4))


def _trainers() -> Iterator[str]:
    from nnunet_godc import trainers

    yield "# Trainers\n"
    yield "Names for `nnUNetv2_train -tr` and where else nnU-Net takes a trainer. Any of them also with `_50epochs` or"
    yield "another number, and then with `_seed1` or another number, behind it.\n"
    names = [name for name in trainers.__all__ if name not in trainers.SHORT]
    for title, chosen in {
        "For use": [name for name in names if "Evidence" not in name and "Smoke" not in name and "Demo" not in name],
        "Of the evidence studies": [name for name in names if "Evidence" in name],
        "Of the tests and the demo": [name for name in names if "Smoke" in name or "Demo" in name],
    }.items():
        yield f"## {title}\n"
        yield "| trainer | what it trains |\n| --- | --- |"
        for name in sorted(chosen):
            summary = " ".join((getattr(trainers, name).__doc__ or "").partition("\n\n")[0].split())
            yield f"| `{name}` | {summary} |"
        yield ""
