"""The report: what was measured, summed up and compared, as tables for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_godc import __version__
from nnunet_godc.errors import UserError
from nnunet_godc.evaluation.case_table import CaseTable, case_tables
from nnunet_godc.evaluation.claims import caveats, claim, multiplicity
from nnunet_godc.evaluation.comparison import Comparison, compare_methods
from nnunet_godc.evaluation.layout import comparison_grid, contexts, result_grids
from nnunet_godc.evaluation.markup import Grid, latex_table, markdown, markdown_table
from nnunet_godc.evaluation.metrics import ABSENT_IN_PREDICTION, DEFINED, LESION_DICE, LESION_SENSITIVITY
from nnunet_godc.evaluation.records import comparison_row, csv_text, json_text, statistics_row
from nnunet_godc.evaluation.statistics import LEVEL, RESAMPLES
from nnunet_godc.evaluation.summary import Summary, summarise
from nnunet_godc.replacing import replacing_all
from nnunet_godc.seeded_names import without_seed
from nnunet_godc.spelling import nearest_name

FEWEST_RESAMPLES = 1000
LONGEST = 40  # comparisons in a table for people; of more, it holds those that claim a difference

_OF_LESION = ("dataset", "configuration", "plans", "trainer", "fold", "case", "patient", "label", "lesion", "bin")
_LATEX_HEAD = r"""% Written by nnunet-godc, for \input. Before \begin{document}:
% \usepackage{booktabs,graphicx}
% \usepackage[T1]{fontenc}

"""


@dataclass(frozen=True)
class Section:
    """The results of one table; `by_size` if it is about the lesions of bins of volumes."""

    table: CaseTable
    summaries: Sequence[Summary]
    comparisons: Sequence[Comparison]
    baseline: str | None
    by_size: bool

    @property
    def title(self) -> str:
        """The dataset, how it was predicted, and what all methods have in common."""
        methods = self.table.methods
        configurations, plans = {method.configuration for method in methods}, {method.plans for method in methods}
        shared = [name for names in (configurations, plans) if len(names) == 1 for name in names if name]
        how = "cross-validation" if self.table.cross_validated else "predictions without a fold"
        return ", ".join([self.table.dataset, *shared, how, *(["by lesion volume"] if self.by_size else [])])

    @property
    def shown_comparisons(self) -> Sequence[Comparison]:
        """Those that tables for people hold."""
        if len(self.comparisons) <= LONGEST:
            return self.comparisons
        return [entry for entry in self.comparisons if entry.supported]


def write_report(
    measurements: pd.DataFrame,
    out: Path,
    *,
    lesions: pd.DataFrame | None = None,
    variants: Mapping[str, str] | None = None,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Path]:
    """Writes statistics.csv, comparisons.csv, report.json, report.md and table.tex, all of them or none.

    The methods of one configuration and plans are each compared with the baseline, or all with each other if none is
    named. docs/statistics.md says what the numbers are.

    Args:
        measurements: one row per case, label and metric of every run, as `case_tables` takes them.
        out: folder, made if it is not there.
        lesions: one row per lesion of the references and run, with the columns dataset, configuration, plans, trainer,
            fold, case, patient, label, lesion, volume_ml, bin, detected and dice.
        variants: what each trainer is called; trainers called alike are trainings of one variant with several seeds,
            and are averaged case by case. By default the ending ``_seed<number>`` is taken off.
        baseline: a variant.
        seed: of the resampling.
        resamples: of bootstrap and permutation test, at least 1000.

    Returns:
        The files.

    Raises:
        UserError: the measurements are not complete or contradict each other, or the baseline or a trainer of
            `variants` is not among them; the files cannot be written.
    """
    check_resamples(resamples)
    names = variants or {}
    _check_trainers(names, set(measurements["trainer"]))

    def called(trainer: str) -> str:
        return without_seed(trainer) if variants is None else names.get(trainer, trainer)

    frames = [(measurements, False)]
    if lesions is not None and not lesions.empty:
        frames.append((_by_size(lesions), True))
    tables = [(table, by_size) for frame, by_size in frames for table in case_tables(frame, called)]
    if baseline is not None:
        check_baseline(baseline, {method.variant for table, _ in tables for method in table.methods})
    sections = [
        Section(
            table,
            summarise(table, resamples=resamples, seed=seed),
            compare_methods(table, baseline=baseline, resamples=resamples, seed=seed),
            baseline,
            by_size,
        )
        for table, by_size in tables
    ]
    statistics = [statistics_row(entry) for section in sections for entry in section.summaries]
    comparisons = [comparison_row(entry) for section in sections for entry in section.comparisons]
    settings = {"baseline": baseline, "seed": seed, "resamples": resamples, "level": LEVEL, "version": __version__}
    contents = {
        "statistics.csv": csv_text(statistics),
        "comparisons.csv": csv_text(comparisons),
        "report.json": json_text({**settings, "statistics": statistics, "comparisons": comparisons}),
        "report.md": _markdown_report(sections, settings),
        "table.tex": _LATEX_HEAD + "\n\n".join(latex_table(grid) for grid in _grids(sections)) + "\n",
    }
    paths = [out / name for name in contents]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing_all(paths) as temporaries:
            for temporary, content in zip(temporaries, contents.values(), strict=True):
                temporary.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write the report to {out}: {error.strerror or error}{where}; mend that, or choose another folder"
        ) from error
    return paths


def check_resamples(resamples: int) -> None:
    """Raises:
    UserError: they are too few.
    """
    if resamples < FEWEST_RESAMPLES:
        raise UserError(f"{resamples} resamples do not settle an interval; take {FEWEST_RESAMPLES} or more")


def check_baseline(baseline: str, variants: Set[str]) -> None:
    """Raises:
    UserError: it is none of the variants.
    """
    if baseline not in variants:
        raise UserError(f"the baseline {baseline} was not measured; {_hint(baseline, variants)}")


def _check_trainers(variants: Mapping[str, str], trainers: Set[str]) -> None:
    unknown = [trainer for trainer in variants if trainer not in trainers]
    if unknown:
        raise UserError(f"the trainer {unknown[0]} was not measured; {_hint(unknown[0], trainers)}")


def _hint(misspelt: str, known: Set[str]) -> str:
    near = nearest_name(misspelt, known)
    return f"did you mean {near}?" if near else f"known are {', '.join(sorted(known))}"


def _by_size(lesions: pd.DataFrame) -> pd.DataFrame:
    """Lesions as measurements: whether detected, and their Dice; the bins in the order of their volumes."""
    missing = [name for name in (*_OF_LESION, "volume_ml", "detected", "dice") if name not in lesions.columns]
    if missing:
        raise UserError(f"the lesions lack the column {missing[0]}; write them with nnunet-godc evaluate")
    bins = lesions["bin"].astype(object)
    bins = bins.where(bins.notna() & (bins != ""), "any volume")
    ordered = lesions.assign(bin=bins).sort_values("volume_ml", kind="stable")
    frames = []
    for metric, column in ((LESION_SENSITIVITY, "detected"), (LESION_DICE, "dice")):
        values = ordered[column].to_numpy(dtype=np.float64)
        states = np.where(np.isnan(values), ABSENT_IN_PREDICTION, DEFINED)
        frames.append(ordered[list(_OF_LESION)].assign(metric=metric, value=values, state=states))
    return pd.concat(frames, ignore_index=True)


def _grids(sections: Sequence[Section]) -> Iterator[Grid]:
    for section in sections:
        yield from _section_grids(section)


def _section_grids(section: Section) -> list[Grid]:
    grids = result_grids(section.title, section.summaries, section.comparisons, baseline=section.baseline)
    if section.shown_comparisons:
        grids.append(comparison_grid(section.title, section.shown_comparisons, among=section.comparisons))
    return grids


def _markdown_report(sections: Sequence[Section], settings: Mapping[str, Any]) -> str:
    against = f"against {settings['baseline']}" if settings["baseline"] else "of all pairs"
    parts = [
        "# Results",
        markdown(
            f"Intervals: 95 %, over patients, {settings['resamples']} resamples, seed {settings['seed']}. Comparisons "
            f"{against}, within one configuration and plans, on the cases where both are defined; a difference is "
            "claimed if Holm's correction leaves the sign-flip test p at most 0.05 and the interval excludes zero. "
            "It is an improvement only where no case is left out because of what one of the two predicted. "
            "comparisons.csv has a sentence for each; nnunet-godc's docs/statistics.md says how the numbers are made."
        ),
    ]
    if asked := multiplicity([entry for section in sections for entry in section.comparisons]):
        parts.append(markdown(asked))
    for section in sections:
        parts.append(f"## {markdown(section.title)}")
        parts += [markdown_table(grid) for grid in _section_grids(section)]
        parts += _told(section, sections)
    return "\n\n".join(parts) + "\n"


def _told(section: Section, sections: Sequence[Section]) -> list[str]:
    """The sentences that the comparisons allow, and what holds for all of them."""
    comparisons, told = section.comparisons, section.shown_comparisons
    if not comparisons:
        return [markdown(_why_not_compared(section, sections))]
    context = contexts(section.table.methods)
    lines = [f"- {markdown(f'{context[entry.method]} {claim(entry)}'.strip())}" for entry in told]
    if not_told := len(comparisons) - len(told):
        lines.append(
            f"- For {not_told} {'more ' if told else ''}comparisons no difference can be claimed; comparisons.csv says "
            "for each what stays possible."
        )
    distinct = dict.fromkeys(caveat for entry in comparisons for caveat in caveats(entry))
    return ["\n".join(lines), *(markdown(caveat) for caveat in distinct)]


def _why_not_compared(section: Section, sections: Sequence[Section]) -> str:
    methods = section.table.methods
    context = contexts(methods)
    names = ", ".join(f"{method.variant} {context[method]}".strip() for method in methods)
    if len(methods) == 1:
        reason = f"{names} is the only method here."
    elif section.baseline is not None and section.baseline not in {method.variant for method in methods}:
        reason = f"the baseline {section.baseline} is not here, but {names}."
    elif section.baseline is not None:
        reason = (
            f"no other method has the configuration and plans of the baseline {section.baseline}; here are {names}."
        )
    else:
        reason = f"methods are compared within one configuration and plans, and these differ: {names}."
    for other in sections:
        elsewhere = [method.variant for method in other.table.methods if method not in methods]
        alike = (other.table.dataset, other.by_size) == (section.table.dataset, section.by_size)
        if alike and elsewhere:
            reason += (
                f" {', '.join(elsewhere)}: see {other.title}; cross-validations and predictions without a fold are not "
                "compared with each other."
            )
    return f"Nothing is compared: {reason}"
