"""What a demo shows as it goes, and its verdict: the same look for every demo."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Says what is being done, and how long it took when it is done."""
    start = time.monotonic()
    with console.status(escape(what)):
        try:
            yield
        except BaseException:
            console.print(f"[red]failed[/]  {escape(what)}", highlight=False, soft_wrap=True)
            raise
    console.print(f"[green]{time.monotonic() - start:5.1f} s[/] {escape(what)}", highlight=False, soft_wrap=True)


def verdict(console: Console, works: bool, claim: str, lines: Iterable[tuple[str, str]]) -> None:
    """The last words: whether it works, in one sentence, and what that rests on. An empty label goes on with the one before."""
    console.print()
    if works:
        console.print(f"[bold green]It works.[/] {escape(claim)}", highlight=False)
    else:
        console.print("[bold red]It does not work.[/] The lines marked FAILED say what is wrong.", highlight=False)
    console.print()
    for label, text in lines:
        style = "bold red" if label == "FAILED" else "bold"
        console.print(f"  [{style}]{label:<13}[/] {escape(text)}", highlight=False, soft_wrap=True)
