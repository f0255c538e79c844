"""What commands print: tables and JSON on stdout, everything else and the progress bars on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .running.exits import Exit
from .running.voice import VOICE, Follow, err_console, logged_stages, printable, say, say_result, write_event

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task

    from ..editor.measure.readable import Interaction, Readable
    from ..editor.measure.table import Details, FigureTable
    from ..editor.rivals.measure import RivalTable
    from ..editor.scan.scan import Scan
    from ..export.verify.verify import Check

SECONDS_BETWEEN_LINES = 10
# Groups in one line, which must stay readable.
MOST_NAMED = 16
_RECALL_LEGEND = (
    "image R@K: how often the image of a caption is among the first K images; text R@K: how often one of an image's "
    "captions is among the first K captions"
)

out_console = Console()

_TITLES = {
    "worst_group": "worst group",
    "worst_group_listed": "listed",
    "worst_group_held_out": "held out",
    "mean_of_groups": "groups",
    "place_accuracy": "place",
    "retention": "kept",
    "control": "random heads",
    "output_projection": "output only",
    **{f"image_retrieval_recall@{k}": f"image R@{k}" for k in (1, 5, 10)},
    **{f"text_retrieval_recall@{k}": f"text R@{k}" for k in (1, 5, 10)},
}
_LEGEND = (
    "listed, held out: worst-group accuracy for places that the concept's texts name, and for places they do not\n"
    "groups: mean accuracy of the groups; place: zero-shot place, which should fall; kept: zero-shot colour"
)
_SKEW_LEGEND = (
    "max_skew: the largest ln(share of a group among the first K / its share p among all images read), mean over the "
    "queries; 0 is unbiased"
)


@contextmanager
def progress() -> Iterator[Follow]:
    """A bar for each stage on stderr, with images/s and time left; a line now and then where there is no terminal.

    Nothing of it with `--quiet`; with `--log-json` a line of JSON for each stage that ends.
    """
    with _shown_progress() as shown, logged_stages(shown) as follow:
        yield follow


@contextmanager
def _shown_progress() -> Iterator[Follow]:
    # In a log, bars would be lines without end.
    if VOICE.quiet or VOICE.as_json or not err_console.is_terminal:
        yield (lambda stage: lambda done, total: None) if VOICE.quiet else _follow_in_lines
        return
    with _bars() as bars:

        def follow(stage: str) -> Callable[[int, int], None]:
            # The total comes with the first report.
            task = bars.add_task(stage, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield follow


def _follow_in_lines(stage: str) -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last, rate = now, done / (now - started)
        left = timedelta(seconds=round((total - done) / rate)) if rate else "unknown time"
        say(f"{stage}: {done} of {total}, {rate:.1f} a second, {left} left")

    return tell


def _bars() -> Progress:
    # Rich's bars take a tenth of a second to import, and most commands answer before they are needed.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), _rate_column())
    return Progress(*columns, TimeRemainingColumn(), console=err_console, transient=True)


def _rate_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.0f} images/s")

    return RateColumn()


def warn(message: object) -> None:
    """A warning: a line like others, since where in the code it arose tells a user nothing."""
    if VOICE.as_json:
        write_event("warning", message=str(message))
    else:
        print(printable(f"warning: {message}"), file=sys.stderr)


def write_line(text: str) -> None:
    """A line on stdout, as it is."""
    out_console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """An error, and the exit code of what was refused."""
    tell_error(message)
    sys.exit(Exit.REFUSED)


def tell_error(message: str) -> None:
    """The line on stderr that says why a run did not do what it should."""
    if VOICE.as_json:
        write_event("error", message=message)
    else:
        print(printable(f"error: {message}"), file=sys.stderr)


def say_next(when: str, command: str) -> None:
    """What to run next."""
    say(f"next, {when}:\n  {command}")


def say_skipped(scanned: Scan | None) -> None:
    """The images that a scan could not read."""
    if scanned is None:
        return
    for name, reason in scanned.bad:
        say_result(f"skipped {name}: {reason}")
    if scanned.more_bad:
        say_result(f"skipped {scanned.more_bad} more")


def print_json(value: Any) -> None:
    """One JSON value on stdout; `null` for numbers that are none, since JSON has no NaN and no infinity."""
    # Past rich, which would wrap and colour it.
    sys.stdout.write(json.dumps(_replace_unsayable(value), indent=2, allow_nan=False) + "\n")


def _replace_unsayable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _replace_unsayable(one) for key, one in value.items()}
    return [_replace_unsayable(one) for one in value] if isinstance(value, list | tuple) else value


def _spell_figure(value: float | None) -> str:
    """`0.935`; a dash for what could not be computed."""
    return f"{value:.3f}" if value is not None and math.isfinite(value) else "-"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Square brackets in a cell are text, not rich's markup.
        table.add_row(*(escape(printable(cell)) for cell in row))
    out_console.print(table)


def print_measures(rows: Mapping[str, Mapping[str, float]]) -> None:
    """A row for each model, a column for each figure in [0, 1]."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if not key.startswith("group: ")))
    cells = [
        [_TITLES.get(name, name), *(_spell_figure(row[key]) if key in row else "" for key in columns)]
        for name, row in rows.items()
    ]
    print_table(["", *(_TITLES.get(column, column) for column in columns)], cells)
    if "worst_group_listed" in columns:
        say(_LEGEND)
    if any(column.startswith("max_skew") for column in columns):
        say(_SKEW_LEGEND)
    if "image_retrieval_recall@1" in columns:
        say(_RECALL_LEGEND)


def print_readable(found: Sequence[Readable]) -> None:
    """A row for each concept that was read before and after an edit."""
    if not found:
        return
    from ..editor.measure.readable import describe_readable

    print_table(["can it be read?", "how", "before", "after"], [describe_readable(one) for one in found])


def exit_if_worse(verdicts: Sequence[str]) -> None:
    """Exit 3 (WORSE) where one of these verdicts is HARMS."""
    if "HARMS" in verdicts:
        sys.exit(Exit.WORSE)


def compare_with_first(tables: Sequence[tuple[str, FigureTable]]) -> None:
    """Say the verdict on every model of a table against its first, and exit as `exit_if_worse`; `""` is no name."""
    from ..editor.measure.verdict import judge_table

    words = []
    for where, table in tables:
        first, start = next(iter(table)), f"{where}, " if where else ""
        for name, verdict in judge_table(table).items():
            say_result(f"{start}{name} against {first}: {verdict}")
            words.append(verdict.word)
    exit_if_worse(words)


def print_interactions(found: Sequence[Interaction]) -> None:
    """A row for each removal and each concept that was removed: the share of the variance along its instances."""
    rows = [
        (", ".join(row.removed), row.concept, f"{100 * row.before:.2f} %", f"{100 * row.after:.2f} %") for row in found
    ]
    if rows:
        print_table(["removed", "variance along instances of", "before", "after"], rows)


def print_measured(table: FigureTable) -> None:
    """A row for each model, a row for each group, and what was measured."""
    print_measures(table)
    print_groups(table.details, all_in="--csv FILE")
    say_measure(table)


def print_rivals(table: RivalTable) -> None:
    """A row for each method: its figures, what it is fitted to, what holds the result, and how long it took."""
    figures = list(next(iter(table.methods.values())).figures)
    titles = ["method", *(_TITLES.get(name, name.replace("_", " ")) for name in figures)]
    cells = [
        [
            name,
            *(_spell_figure(row.figures.get(figure)) for figure in figures),
            "yes" if row.labels else "no",
            "yes" if row.plain else "no",
            f"{row.seconds:.1f}",
        ]
        for name, row in table.methods.items()
    ]
    print_table([*titles, "labels used", "plain checkpoint", "seconds"], cells)
    for name, why in table.left_out.items():
        say(f"left out: {name}: {why}")
    say(f"measured: {table.measure}")


def say_measure(table: FigureTable, *, groups: bool = False) -> None:
    """What was measured; with `groups`, also which groups there are and of how many images each."""
    if table.measure:
        first = next(iter(table.details.values()), None)
        named = [f"{name} ({share.n})" for name, share in first.groups.items()] if first and groups else []
        named = [*named[:MOST_NAMED], *([f"{len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else [])]
        say(": ".join([f"measured: {table.measure}", *([", ".join(named)] if named else [])]))


def print_groups(details: Mapping[str, Details], *, all_in: str = "--json") -> None:
    """A row for each group, those that are served worst first: n, and each model's accuracy with its interval.

    `all_in` is the option that gives all of them where they are too many for a screen.
    """
    from ..editor.measure.table import MOST_GROUPS

    first = next(iter(details.values()), None)
    if first is None or not first.groups:
        return
    worst_first = sorted(first.groups, key=lambda name: first.groups[name].value)
    shown, models = worst_first[:MOST_GROUPS], list(details)
    cells = [
        [name, str(first.groups[name].n), *(str(details[model].groups.get(name, "")) for model in models)]
        for name in shown
    ]
    print_table(["group (95 % interval)", "n", *(_TITLES.get(model, model) for model in models)], cells)
    if len(worst_first) > len(shown):
        say(f"{len(worst_first) - len(shown)} more groups, served better: {all_in} gives all of them")


def print_heads(labels: Mapping[str, Sequence[Any]], heads: Sequence[str]) -> None:
    """Heads with the three texts that explain most of each."""
    rows = []
    for head in heads:
        texts = ", ".join(f"{item.text} ({item.variance_share:.0%})" for item in labels[head][:3])
        rows.append([head, texts or "never varies"])
    print_table(["head", "texts that explain most of it (share of its variance)"], rows)


def print_checks(checks: Sequence[Check], *, show_all: bool = True) -> None:
    """The checks of an export, and how many hold."""
    for check in checks if show_all else []:
        write_line(str(check))
    held = sum(check.holds for check in checks)
    out_console.print(f"verified in a fresh process: {held} of {len(checks)} checks hold", highlight=False)
