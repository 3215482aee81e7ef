"""The figures of the report, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import sweep_files
from bench.report.figures.gaps import by_size, by_width
from bench.report.figures.maps import maps
from bench.report.figures.rounds import by_trigger, traces
from bench.report.figures.sensitivity import curves
from bench.report.figures.series import Plot, Series, series
from bench.report.figures.spread import spread
from bench.report.figures.trade_off import trade_off
from bench.report.figures.tsne import planes
from bench.report.groups import Group, variants
from bench.report.rows import Row

__all__ = ["Plot", "draw"]


def draw(group: Group) -> list[Plot]:
    """Every figure the group's scored records give something to show for."""

    def shown(rows: Sequence[Row]) -> Series:
        return series(rows, variants(rows))

    def of(*names: str) -> Series:
        return shown(sweep_files.of(group.scored, *names))

    rounds, runs = of("figures3_4"), shown([row for row in group.scored if "figure1" in row.parts])
    plots = trade_off(shown(sweep_files.of_any(group.scored, "table1", "table2")))
    plots += [*spread(of("figure1")), *curves(group.scored)]
    plots += [*by_width(sweep_files.of(group.scored, "table7"))]
    plots += [*by_size(sweep_files.of(group.scored, "table8", "table7"))]
    plots += [*maps(sweep_files.of(group.scored, "c_delta")), *traces(rounds), *by_trigger(rounds)]
    plots += traces(runs, "Figure 1")
    return [*plots, *planes([row for row in group.rows if row.measured])]
