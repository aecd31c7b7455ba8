"""Prints the tables of docs/capacity.md, from the figures in bench/figures.json.

python -m bench.capacity                                    # all tables
python -m bench.capacity --rates 50 --images 2e8 --set share_l=0.4 --price store_gb_month=0.01
python -m bench.capacity --write                            # writes them into the document
python -m bench.capacity --check                            # exit code 1 if the document has others
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.capacity import report
from bench.capacity.costs import read_costs
from bench.capacity.inputs import Inputs, Prices, change
from bench.figures import FIGURES, FigureMissing, Figures

DOCUMENT = Path(__file__).parents[2] / "docs" / "capacity.md"
RATES = "1,100,10000"
IMAGES = "1e7,1e9,1e10"
BILLED_IMAGES = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default=RATES, help=f"uploads a second ({RATES})")
    parser.add_argument("--images", default=IMAGES, help=f"numbers of stored images ({IMAGES})")
    parser.add_argument("--billed", type=float, default=BILLED_IMAGES, help=f"images of the bill ({BILLED_IMAGES:g})")
    parser.add_argument("--set", action="append", default=[], metavar="INPUT=VALUE", help="another value of an input")
    parser.add_argument("--price", action="append", default=[], metavar="NAME=DOLLARS", help="another price")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="the file of figures (bench/figures.json)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write the tables into docs/capacity.md")
    action.add_argument("--check", action="store_true", help="compare them with docs/capacity.md")
    options = parser.parse_args()
    try:
        tables = make_tables(
            Figures.load(options.figures),
            change(Inputs(), options.set),
            change(Prices(), options.price),
            rates=read_numbers(options.rates),
            images=read_numbers(options.images),
            billed=options.billed,
        )
    except (FigureMissing, ValueError) as error:
        sys.exit(f"bench.capacity: {error}")
    if not options.write and not options.check:
        print("\n\n".join(tables.values()))
        return
    before = DOCUMENT.read_text()
    after = fill_in(before, tables)
    if options.write:
        DOCUMENT.write_text(after)
    elif before != after:
        sys.exit("bench.capacity: docs/capacity.md has other tables; `python -m bench.capacity --write` writes these")


def read_numbers(text: str) -> list[float]:
    """Returns the numbers of a comma-separated list. Raises ValueError."""
    return [float(part) for part in text.split(",")]


def make_tables(
    figures: Figures, inputs: Inputs, prices: Prices, *, rates: list[float], images: list[float], billed: float
) -> dict[str, str]:
    """Returns the tables by the names of their places in the document. Raises FigureMissing."""
    costs, measured = read_costs(figures)
    return {
        "measured": report.write_measured(measured),
        "inputs": report.write_inputs(inputs),
        "flows": report.write_flows(rates, costs, inputs),
        "limits": report.write_limits(rates, costs, inputs),
        "stocks": report.write_stocks(images, costs, inputs),
        "money": report.write_money(rates, billed, costs, inputs, prices),
        "prices": report.write_prices(prices),
    }


def fill_in(document: str, tables: Mapping[str, str]) -> str:
    """Returns the document with each table in its place: between `<!-- table NAME -->` and `<!-- end -->`.

    Raises ValueError if it has no such place.
    """
    for name, text in tables.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, has_begin, rest = document.partition(begin)
        _, has_end, after = rest.partition(end)
        if not has_begin or not has_end:
            raise ValueError(f"docs/capacity.md has no place for the table {name}")
        document = f"{before}{begin}{text}\n{end}{after}"
    return document


if __name__ == "__main__":
    main()
