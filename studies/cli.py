"""The command line: ``python -m studies COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from textwrap import fill

from metaplastic.errors import MetaplasticError, UnknownNameError
from metaplastic.recipes import RECIPES
from studies.commands import (
    bench,
    demo,
    evaluate,
    report,
    reproduce,
    search,
    search_report,
    train,
    transfer,
)
from studies.commands.base import Command
from studies.presets import PRESETS
from tasks import TASKS

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        demo.COMMAND,
        train.COMMAND,
        evaluate.COMMAND,
        transfer.COMMAND,
        search.COMMAND,
        search_report.COMMAND,
        reproduce.COMMAND,
        report.COMMAND,
        bench.COMMAND,
    )
}
"""Every command; a new one is one file in ``studies/commands`` and one name here."""

EXAMPLES = """
  python -m studies demo
  python -m studies train --task glyphs-continual --learner flp --quick
  python -m studies train --resume runs/train-2026-01-31-120000
  python -m studies evaluate runs/demo/runs/glyphs-continual-flp --ways 3
  python -m studies transfer runs/pool-0 runs/pool-1 --to mlp:128x128x128 --to conv:8-64
  python -m studies search --task sinusoid-continual --learner flp --preset smoke --workers 2
  python -m studies search-report runs/search-2026-01-31-120000 --export-best best.toml
  python -m studies reproduce dfc --preset smoke --methods bp,dfc-ssa --out runs/dfc
  python -m studies report runs/first runs/second --out runs/both
  python -m studies bench --sizes small,middle --peers fused,higher
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a wrong request, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise UnknownNameError("command", arguments[0], COMMANDS)
        parsed = make_parser().parse_args(arguments)
        COMMANDS[parsed.command].run(parsed)
    except MetaplasticError as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as reason:
        print(f"\n{str(reason) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description="Meta-train, score and compare learners with local plasticity.",
        epilog=catalogue() + f"\n\nexamples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        sub = commands.add_parser(
            command.name,
            help=command.about,
            description=fill(command.description or command.about, 78),
            epilog=catalogue() if command.names else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(sub)
        _add_common(sub, command)
    return parser


def catalogue() -> str:
    """Tasks, learners and presets by name, for the help."""
    learners = {name: known.about for name, known in RECIPES.items()}
    return "\n".join(
        [
            "tasks:\n  " + "\n  ".join(TASKS),
            "\nlearners:\n" + _columns(learners),
            "\npresets:\n" + _columns(PRESETS),
        ]
    )


def _columns(texts: dict[str, str]) -> str:
    width = max(map(len, texts))
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in texts.items())


def _add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    unused = "no effect here" if command.preset is None else ""
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--out", metavar="DIR", help=f"folder for the results (runs/{command.name}-<date>)"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace the results in DIR, if there are any"
    )
    group.add_argument(
        "--seed", type=int, help=f"seed of weights and training episodes ({unused or 0})"
    )
    group.add_argument(
        "--device", default="auto", help="auto, cpu or cuda (auto: a GPU if there is one)"
    )
    group.add_argument(
        "--preset", help=f"size of the study: {', '.join(PRESETS)} ({unused or command.preset})"
    )
    group.add_argument(
        "--quick", dest="preset", action="store_const", const="quick", help="--preset quick"
    )
