"""What the jobs of a study are doing, as a table."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nnunet_godc.commands import duration
from nnunet_godc.report.assets import check_packages
from nnunet_godc.study.folder import State, current_states, read_study_folder
from nnunet_godc.study.jobs import Job
from nnunet_godc.study.run import refresh_jobs
from nnunet_godc.training_log import Progress, read_progress

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_PAGES = 20
ROWS_OF_PAGE = 200
HEADINGS = ("job", "state", "epoch", "loss", "pseudo Dice", "time left", "took")
_COLOURS = {
    "done": "green",
    "running": "cyan",
    "queued": "cyan",
    "failed": "bold red",
    "interrupted": "yellow",
    "not run": "red",
    "pending": "dim",
}


@dataclass(frozen=True)
class JobStatus:
    """One row.

    Attributes:
        job: which.
        state: what has become of it.
        progress: of a training that has begun; None for everything else.
    """

    job: Job
    state: State
    progress: Progress | None


def job_statuses(folder: Path) -> list[JobStatus]:
    """What the jobs of a study are doing now.

    Raises:
        UserError: this is no study, or its cluster does not answer.
    """
    _, jobs = read_study_folder(folder)
    refresh_jobs(folder, jobs)
    states = current_states(folder, jobs)
    return [JobStatus(job, states[job.id], _progress(job)) for job in jobs]


def show_status(folder: Path, *, live: bool, html: bool = False) -> None:
    """Prints the table; `live` keeps it up to date on a terminal until everything has ended, or Ctrl-C.

    Args:
        html: writes a page with training curves instead, and with `live` keeps that up to date.

    Raises:
        UserError: as `job_statuses`, or the page cannot be written.
    """
    if html:
        with contextlib.suppress(KeyboardInterrupt):
            _show_page(folder, live=live)
        return
    console = Console()
    statuses = job_statuses(folder)
    if not live or not console.is_terminal:
        # Where nobody looks at it, no line is cut short.
        width = console.width if console.is_terminal else 200
        Console(width=width).print(render(folder, statuses))
        return
    # Ctrl-C is how one leaves it
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(render(folder, statuses, rows=_rows(console)), console=console, auto_refresh=False) as display,
    ):
        while _goes_on(statuses):
            time.sleep(SECONDS_BETWEEN_LOOKS)
            statuses = job_statuses(folder)
            display.update(render(folder, statuses, rows=_rows(console)), refresh=True)


def _goes_on(statuses: Sequence[JobStatus]) -> bool:
    return any(entry.state.status in ("running", "queued", "pending") for entry in statuses)


def _show_page(folder: Path, *, live: bool) -> None:
    check_packages()
    statuses = job_statuses(folder)
    print(f"open {_write_page(folder, statuses, live=live)} in a browser", flush=True)
    while live and _goes_on(statuses):
        time.sleep(SECONDS_BETWEEN_PAGES)
        statuses = job_statuses(folder)
        _write_page(folder, statuses, live=True)


def _write_page(folder: Path, statuses: Sequence[JobStatus], *, live: bool) -> Path:
    """The table and the curves of all trainings; it loads itself anew while something runs."""
    # here, since they take long to import and the table in the terminal needs none of them
    from nnunet_godc.evaluation.markup import Table as PageTable
    from nnunet_godc.report.charts import slug
    from nnunet_godc.report.curves import curves_chart, read_logs
    from nnunet_godc.report.page import write_curves_page

    models = dict.fromkeys(entry.job.fold_folder.parent for entry in statuses if entry.job.kind == "train")
    epochs = read_logs(list(models))
    charts = []
    for dataset, own in epochs.groupby("dataset", sort=False, observed=True):
        names = list(dict.fromkeys(own["trainer"]))
        if chart := curves_chart(own, {name: number for number, name in enumerate(names)}, names):
            name = f"{chart.name}-{slug(str(dataset))}"
            charts.append(replace(chart, name=name, group="training-curves", choice=str(dataset)))
    rows = [
        (entry.job.id, entry.state.status, *_figures(entry), _took(entry.state))
        for entry in _most_telling(statuses, ROWS_OF_PAGE)
    ]
    counts = Counter(entry.state.status for entry in statuses)
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    table = PageTable(f"As of {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}", HEADINGS, rows, text=2)
    reasons = [reason.plain for reason in (*_reasons(statuses), *_notes(statuses))]
    seconds = SECONDS_BETWEEN_PAGES if live and _goes_on(statuses) else 0
    return write_curves_page(folder / "status", folder.name, [said, *reasons, table], charts, seconds)


def render(folder: Path, statuses: Sequence[JobStatus], *, rows: int | None = None) -> Group:
    """The table with a line below it that sums it up, and the reason for whatever did not go well.

    Args:
        folder: of the study.
        statuses: of all its jobs.
        rows: how many fit on the screen; of more jobs, those that are done go first, then those that wait.
    """
    table = Table(title=str(folder), title_justify="left", box=None, header_style="bold", pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", justify="left" if heading in ("job", "state") else "right")
    shown = _most_telling(statuses, len(statuses) if rows is None else rows)
    for entry in shown:
        colour = _COLOURS[entry.state.status]
        table.add_row(entry.job.id, Text(entry.state.status, style=colour), *_figures(entry), _took(entry.state))
    counts = Counter(entry.state.status for entry in statuses)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    if len(shown) < len(statuses):
        summary += f"; {len(statuses) - len(shown)} jobs are not shown, which --once shows"
    return Group(table, Text(summary), *_reasons(statuses), *_notes(shown))


def _most_telling(statuses: Sequence[JobStatus], count: int) -> list[JobStatus]:
    """At most so many, in their order."""
    ranks = {"done": 2, "pending": 1, "not run": 1}
    chosen = sorted(statuses, key=lambda entry: ranks.get(entry.state.status, 0))[: max(count, 1)]
    return [entry for entry in statuses if entry in chosen]


def _rows(console: Console) -> int:
    """How many jobs fit on the screen with their headings, two lines each, since their names are long."""
    return (console.height - 6) // (1 if console.width > 160 else 2)


def _progress(job: Job) -> Progress | None:
    return read_progress(job.fold_folder) if job.kind == "train" else None


def _figures(entry: JobStatus) -> tuple[str, str, str, str]:
    progress = entry.progress
    if progress is None or progress.of is None:
        return ("", "", "", "")
    left = ""
    if entry.state.status == "running":
        validating = f"validating, case {progress.validated}" if progress.validated else ""
        left = duration(progress.seconds_left) if progress.seconds_left is not None else validating
    return (
        f"{progress.epochs}/{progress.of}",
        "" if progress.loss is None else f"{progress.loss:.4f}",
        "" if progress.mean_dice is None else f"{progress.mean_dice:.4f}",
        left,
    )


def _took(state: State) -> str:
    if state.start is None:
        return ""
    end = time.time() if state.status == "running" else state.end
    return "" if end is None else duration(end - state.start)


def _reasons(statuses: Sequence[JobStatus]) -> Iterator[Text]:
    """What the jobs that are queued wait for, those that wait for the same together."""
    reasons = Counter(entry.state.note for entry in statuses if entry.state.status == "queued" and entry.state.note)
    for reason, count in reasons.items():
        yield Text(f"{count} queued: {reason}", style=_COLOURS["queued"])


def _notes(statuses: Sequence[JobStatus]) -> Iterator[Text]:
    for entry in statuses:
        if entry.state.status in ("failed", "interrupted", "pending") and entry.state.note:
            yield Text(f"{entry.job.id}: {entry.state.note}", style=_COLOURS[entry.state.status])
