"""What came out of a study so far: an evaluation of each dataset, and one page about the whole."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_godc.atomic_write import atomic_write
from nnunet_godc.commands import duration, find_command
from nnunet_godc.errors import UserError
from nnunet_godc.report.assets import page_options
from nnunet_godc.study.definition import Study
from nnunet_godc.study.folder import job_folder, read_study_folder
from nnunet_godc.study.planning import evaluation_command
from nnunet_godc.study.published import published_table
from nnunet_godc.study.status import JobStatus, job_statuses

REPORT = "report.md"


def collect(folder: Path) -> Path:
    """Evaluates every model of a study that has results, and writes report.md, which also tells what is missing.

    Raises:
        UserError: this is no study, nothing is trained yet, or an evaluation fails.
    """
    folder = folder.absolute()
    study, _ = read_study_folder(folder)
    statuses = job_statuses(folder)
    done = [entry.job for entry in statuses if entry.state.status == "done"]
    trained = [job for job in done if job.kind == "train"]
    if not trained:
        raise UserError(f"no training is done yet; `nnunet-godc study status {folder}` shows how far they are.")
    pages: dict[str, str] = {}
    for dataset in study.datasets:
        models = list(dict.fromkeys(job.fold_folder.parent for job in trained if job.dataset == dataset))
        if models and "all" not in study.definition.folds:
            pages[dataset] = _evaluate(study, evaluation_command(study, folder, dataset, models))
        predicted = [
            Path(job.expected[0]) for job in done if job.kind in ("predict", "ensemble") and job.dataset == dataset
        ]
        if predicted and study.definition.predict and study.definition.predict.references:
            command = evaluation_command(study, folder, dataset, predicted, held_out=True)
            pages[f"{dataset}, held-out images"] = _evaluate(study, command)
    report = folder / REPORT
    with atomic_write(report) as partial:
        partial.write_text("\n".join(_report(study, folder, statuses, pages)) + "\n", encoding="utf-8")
    return report


def _evaluate(study: Study, command: Sequence[str]) -> str:
    """Runs an evaluation, and returns its report."""
    page = Path(command[command.index("--out") + 1], REPORT)
    before = page.stat().st_mtime_ns if page.exists() else 0
    answer = subprocess.run([find_command(command[0]), *command[1:], *page_options()])
    # It also fails where cases are missing, as they are while trainings go on; then there is a report all the same.
    if answer.returncode and not (page.exists() and page.stat().st_mtime_ns > before):
        raise UserError(f"the evaluation failed, see above; it was: {' '.join(command)}")
    text = page.read_text(encoding="utf-8").strip()
    if study.definition.published is not None:
        text = f"{text}\n\n{published_table(study.definition.published, page.parent)}"
    baseline = study.definition.evaluate.get("baseline")
    if baseline is not None and "--baseline" not in command:
        return f"{baseline}, the baseline, has no results yet: the others are compared with each other.\n\n{text}"
    return text


def _report(study: Study, folder: Path, statuses: Sequence[JobStatus], pages: Mapping[str, str]) -> Iterator[str]:
    yield f"# {study.name}"
    yield ""
    missing = [entry for entry in statuses if entry.state.status != "done" and entry.job.kind != "evaluate"]
    trainings = [entry for entry in statuses if entry.job.kind == "train"]
    done = sum(entry.state.status == "done" for entry in trainings)
    yield f"{done} of {len(trainings)} trainings are done."
    if missing:
        yield ""
        yield "Missing, hence in no number below:"
        yield ""
        for entry in missing:
            note = f": {entry.state.note}" if entry.state.note else ""
            yield f"- {entry.job.id} ({entry.state.status}{note})"
    yield ""
    yield from _what_made_it(folder, trainings)
    for title, page in pages.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield re.sub("^#", "###", page, flags=re.MULTILINE)


def _what_made_it(folder: Path, trainings: Sequence[JobStatus]) -> Iterator[str]:
    """Versions, machines and time of all trainings that are done."""
    attempts: list[dict[str, Any]] = []
    there_before = []
    for entry in trainings:
        if entry.state.status != "done":
            continue
        record = job_folder(folder, entry.job.id).provenance
        if record.exists():
            attempts += json.loads(record.read_text())["attempts"]
        else:
            there_before.append(entry.job.id)
    if attempts:
        seconds = sum(attempt["seconds"] or 0 for attempt in attempts)
        yield f"- trained for {duration(seconds)} in {len(attempts)} attempts"
        for what, values in (
            ("GPU", {name for attempt in attempts for name in attempt["gpus"]}),
            ("commit", {attempt["commit"] for attempt in attempts if attempt["commit"]}),
            *(
                (package, {attempt["versions"].get(package) for attempt in attempts} - {None})
                for package in attempts[0]["versions"]
            ),
        ):
            if values:
                yield f"- {what}: {', '.join(sorted(values))}"
    if there_before:
        yield f"- there before this study, so that nothing is known of how it was made: {', '.join(there_before)}"
