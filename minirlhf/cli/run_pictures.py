"""`minirlhf run page`, `watch`, `plot` and `csv`: pictures of runs, and their numbers for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minirlhf.cli.run_watch import watch
from minirlhf.columns import in_colour
from minirlhf.seeing.page import write_page
from minirlhf.seeing.plot import plots
from minirlhf.seeing.table_file import write_csv


def add_pictures(commands: Any) -> None:
    """Add these commands to the parser of `minirlhf run`."""
    page = commands.add_parser("page", help="one HTML page about runs: curves, samples, time, settings")
    page.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run, or the folder of a pipeline")
    page.add_argument("-o", "--output", type=Path, help="default: page.html, in DIR if there is one DIR")
    watching = commands.add_parser("watch", help="follow a run from another terminal until it ends; Ctrl-C stops that")
    watching.add_argument("folder", type=Path, metavar="DIR", help="a run, or the folder of a pipeline")
    watching.add_argument("--once", action="store_true", help="print the present state, and end")
    plotting = commands.add_parser("plot", help="curves of runs in the terminal")
    plotting.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run, or the folder of a pipeline")
    plotting.add_argument("--metric", nargs="+", default=[], help="such as eval/gold_reward kl; default: usual metrics")
    table = commands.add_parser("csv", help="one CSV file: a row for each step, a column for each metric")
    table.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run, or the folder of a pipeline")
    table.add_argument("-o", "--output", type=Path, required=True, help="such as metrics.csv")


def show_pictures(asked: argparse.Namespace) -> None:
    match asked.command:
        case "page":
            alone = asked.folders[0] if len(asked.folders) == 1 else Path()
            path = asked.output or alone / "page.html"
            for note in write_page(asked.folders, path):
                print(note)
            print(f"open {path} in a browser")
        case "watch":
            watch(asked.folder, asked.once)
        case "plot":
            print(plots(asked.folders, asked.metric, in_colour()))
        case "csv":
            print(*write_csv(asked.folders, asked.output), sep="\n")
