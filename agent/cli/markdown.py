"""docs/configuration.md, made from the settings tables: what is documented is what is parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.cli.flags import default_words, wrap
from agent.exits import Exit
from agent.settings import ENV_FILE, ENV_PREFIX, REQUIRED, BaseSettings, Spec, specs

_INTRODUCTION = f"""\
# Configuration

*Made by `python scripts/configuration.py` from the tables in `seed_server/settings.py` and `shoot_client/settings.py`;
change those, not this page.*

Every setting has one name in three spellings: a flag (`--wireguard-port`), an environment variable
(`{ENV_PREFIX}WIREGUARD_PORT`) and a key of a TOML file (`wireguard_port`; the file is named by `--config` or `{ENV_FILE}`).

- A flag wins over the environment, the environment over the file, the file over the default.
- All problems are reported at once, and the process ends with exit code 2.
- Unknown flags, keys and variables that start with `{ENV_PREFIX}` are errors. (Variables that Kubernetes makes for services
  whose name starts with `rhizome` are not ours and are ignored.)
- A setting with several values is a flag that may be repeated, a comma-separated list in a flag or variable (headers: one
  per line), an array in TOML. Given in one place it replaces what the others say; an empty list clears it.
- Secrets are named by the path of a file, never given as a value.
- `--print-config` prints all settings as TOML, with where each came from. The output can be used as a file.
"""


def page(roles: Sequence[type[BaseSettings]]) -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for role in roles:
        parts.append(f"## {role.PROGRAM}\n\n{role.ABOUT}\n")
        parts.append("```sh\n" + "\n".join(wrap(example) for example in role.EXAMPLES) + "\n```\n")
        table = specs(role)
        for group in role.GROUPS:
            if rows := [_row(spec) for spec in table if spec.group == group]:
                head = "| setting | accepts | default | meaning |\n|---|---|---|---|"
                parts.append(f"### {group}\n\n" + "\n".join([head, *rows]) + "\n")
    codes = [f"| {code.value} | {_cell(code.meaning)} |" for code in Exit]
    parts.append("## Exit codes\n\n" + "\n".join(["| code | meaning |", "|---|---|", *codes]) + "\n")
    return "\n".join(parts)


def _row(spec: Spec[Any]) -> str:
    names = f"`{spec.name}`<br>`{spec.flag}`<br>`{spec.env}`"
    accepts = f"{'any number of: ' if spec.many else ''}{spec.kind.rule}{', ' + spec.unit if spec.unit else ''}"
    default = "required" if spec.default is REQUIRED else f"`{words}`" if (words := default_words(spec)) else "none"
    return f"| {names} | {_cell(accepts)} | {default} | {_cell(spec.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
