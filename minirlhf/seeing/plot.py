"""Curves of runs in a terminal: `plots(jobs)` draws each metric with braille dots, 2 x 4 dots in a letter.

Several curves have a letter each, which stands on the curve here and there, and on a terminal a colour too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from minirlhf.columns import columns_of, padded, printable, shortened
from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.seeing.page import names_of
from minirlhf.seeing.reading import SeenJob, read_job
from minirlhf.seeing.series import Series

WIDTH, ROWS = 80, 12  # columns of a plot, rows of its canvas
NUMBER = 9  # columns of a number at the left side
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille letter, by row and column
BRAILLE = 0x2800
MOST = 4  # plots, without --metric
LETTERS = "abcdefghijklmnopqrstuvwxyz"
EVERY = 24  # columns between two letters on a curve
COLOURS = tuple(f"\x1b[3{digit}m" for digit in (6, 3, 5, 2, 1, 4))
END = "\x1b[0m"
# Without --metric: the first of each line that a run has.
USUAL = (
    ("eval/gold_reward", "eval/model_reward", "eval/accuracy", "eval/loss"),
    ("score_mean", "accuracy", "loss"),
    ("kl",),
    ("entropy",),
)
Points = list[tuple[float, float]]  # (step, value)


def plots(folders: Sequence[Path], metrics: Sequence[str] = (), colour: bool = False) -> str:
    """A plot of each metric, with a curve for each folder. metrics: none takes at most four usual metrics.

    Of a pipeline the last run that has the metric is drawn.
    Raises: InputError for a folder without runs, for more than 26 folders, and for a metric that no run has.
    """
    if len(folders) > len(LETTERS):
        raise InputError(f"run plot: needed at most {len(LETTERS)} folders, got {len(folders)}; name fewer")
    jobs = [read_job(folder, points=WIDTH, samples=False) for folder in folders]
    known = dict.fromkeys(name for job in jobs for run in job.runs for name in run.metrics)
    if not known:
        raise InputError("run plot: needed a run with a metric, got none that has made a step; wait for its first")
    for name in metrics:
        if name not in known:
            near = nearest(name, known) or f"; metrics: {', '.join(known)}"
            raise InputError(f"--metric: no run has {shown(name)}{near}")
    usual = [name for names in USUAL if (name := next((n for n in names if n in known), None))]
    chosen = metrics or usual or list(known)[:MOST]
    labels = names_of(folders)
    return "\n\n".join(plot(name, _curves(name, jobs, labels), colour) for name in chosen)


def _curves(name: str, jobs: Sequence[SeenJob], labels: Sequence[str]) -> dict[str, Series]:
    """Label -> the metric of a job's last run that has it."""
    found = {}
    for job, label in zip(jobs, labels, strict=True):
        if runs := [run for run in job.runs if name in run.metrics]:
            own = "" if runs[-1].folder == job.folder else f" {runs[-1].folder.relative_to(job.folder)}"
            found[label + own] = runs[-1].metrics[name]
    return found


def plot(name: str, curves: dict[str, Series], colour: bool = False) -> str:
    """A frame with numbers at its sides, and below it a line about each curve."""
    points = {label: [(bucket.step, bucket.mean) for bucket in series.buckets] for label, series in curves.items()}
    low, high = _range([y for curve in points.values() for _, y in curve])
    first, last = _range([x for curve in points.values() for x, _ in curve])
    canvas = Canvas(WIDTH - NUMBER - 2, ROWS, COLOURS if colour else ())
    for curve in points.values():
        canvas.draw([((x - first) / (last - first), (y - low) / (high - low)) for x, y in curve])
    numbers = {0: high, ROWS // 2: high - (high - low) * (ROWS // 2 + 0.5) / ROWS, ROWS - 1: low}
    lines = [shortened(printable(name), WIDTH)]
    for k, row in enumerate(canvas.rows()):
        number = padded(_number(numbers[k]), NUMBER, right=True) if k in numbers else " " * NUMBER
        lines.append(f"{number} {'┤' if k in numbers else '│'}{row}".rstrip())
    lines.append(" " * (NUMBER + 1) + "└" + "─" * canvas.width)
    left, right = f"step {first:,.0f}", f"{last:,.0f}"
    lines.append(" " * (NUMBER + 2) + left + right.rjust(canvas.width - len(left)))
    return "\n".join([*lines, *_legend(curves, canvas)])


def _legend(curves: dict[str, Series], canvas: Canvas) -> Iterator[str]:
    """A line for each curve: its letter, its run, its last, lowest and highest value."""
    for k, (label, series) in enumerate(curves.items()):
        (step, value), low, high = series.last, series.lowest, series.highest
        facts = f"{_number(value)} at step {step:,}; {_number(low[1])} to {_number(high[1])}"
        if series.width > 1:
            facts += f"; means of {series.width} values"
        text = f"{shortened(printable(label), WIDTH - len(facts) - 5)}: {facts}"
        yield f"{canvas.letter(k)}  {text}" if len(curves) > 1 else text


class Canvas:
    """Braille letters, `width` by `height`. Each curve has a letter on it, if there are several."""

    def __init__(self, width: int, height: int, colours: Sequence[str] = ()) -> None:
        self.width, self.height, self.colours = width, height, colours
        self._bits: dict[tuple[int, int], int] = {}  # (row, column) -> the dots of a letter
        self._owner: dict[tuple[int, int], int] = {}  # (row, column) -> the last curve there
        self._paths: list[dict[int, int]] = []  # of each curve: column -> row

    def draw(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw a curve through points between (0, 0), at the left and lower end, and (1, 1)."""
        path: dict[int, int] = {}
        dots = [(round(x * (2 * self.width - 1)), round((1 - y) * (4 * self.height - 1))) for x, y in points]
        for (x0, y0), (x1, y1) in zip(dots, [*dots[1:], dots[-1]], strict=True):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for k in range(steps + 1):
                x, y = round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps)
                place = y // 4, x // 2
                self._bits[place] = self._bits.get(place, 0) | DOTS[y % 4][x % 2]
                self._owner[place] = len(self._paths)
                path[x // 2] = y // 4
        self._paths.append(path)

    def rows(self) -> Iterator[str]:
        letters = self._letters()
        for row in range(self.height):
            cells = []
            for place in ((row, column) for column in range(self.width)):
                cell = letters.get(place) or chr(BRAILLE + self._bits[place]) if place in self._bits else " "
                cells.append(self._coloured(cell, self._owner[place]) if cell != " " else cell)
            yield "".join(cells)

    def letter(self, curve: int) -> str:
        return self._coloured(LETTERS[curve], curve)

    def _letters(self) -> dict[tuple[int, int], str]:
        """The letters on the curves, at other columns for each curve. One curve needs none."""
        count, found = len(self._paths), {}
        for curve, path in enumerate(self._paths if count > 1 else []):
            for column in range(2 + curve * EVERY // count, self.width, EVERY):
                if column in path:
                    place = path[column], column
                    found[place], self._owner[place] = LETTERS[curve], curve
        return found

    def _coloured(self, text: str, curve: int) -> str:
        return f"{self.colours[curve % len(self.colours)]}{text}{END}" if self.colours else text


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value, apart if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - (abs(low) or 1), high + (abs(high) or 1))


def _number(value: float) -> str:
    """At most 9 columns."""
    text = f"{value:.4g}"
    return text if columns_of(text) <= NUMBER else f"{value:.2g}"
