"""One conversion from sources to store: scan, plan, write, publish; and what stays behind when it does not end well."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from asmil import __version__
from asmil.data.directory import DirectoryLock
from asmil.data.index import IndexRow
from asmil.data.labels import first_of
from asmil.data.packing.convert import ShardWriter, write_shards
from asmil.data.packing.matching import LabelMatcher, LabelOptions
from asmil.data.packing.messages import Problem, ShardResult
from asmil.data.packing.plan import Plan, make_plan
from asmil.data.packing.pool import WorkerPool
from asmil.data.packing.process import ReaderLimits
from asmil.data.packing.progress import Progress
from asmil.data.packing.scan import Scan, fingerprint, scan_sources
from asmil.data.packing.shard_job import sent_options
from asmil.data.packing.state import PackState
from asmil.data.publish import StoreContent, labels_to_bytes, publish_store
from asmil.data.schema import DATASET_FILE, DatasetInfo, FeatureDtype
from asmil.data.sources import ReadOptions
from asmil.data.sources.tiles import ASK_FOR_RESOLUTION
from asmil.errors import DataError, EnvironmentProblem

__all__ = ["PackOptions", "pack"]

_SHOWN_PROBLEMS = 20
Say = Callable[[str], None]
_print_now: Say = partial(print, flush=True)  # a log file shows where a conversion is


@dataclass(frozen=True)
class PackOptions:
    """What a user tells the conversion beyond sources and target.

    Attributes:
        read: Options of the readers.
        dtype: Dtype of the store; None takes the default of the source format.
        labels: Label table to put beside the bags.
        facts: What the sources do not say about themselves: any of encoder, magnification, mpp, tile_size.
        workers: Processes; None takes one per CPU.
        resume: Go on with an interrupted conversion.
        clip: Clip finite values beyond the range of the dtype, and count them.
        strict: Refuse if any slide has to be left out.
        skip_bad: Leave out slides that their producer must correct, such as those with NaN, instead of refusing them.
        shard_mib: A shard closes after the slide that crosses this size; None takes `plan.usual_shard_bytes`.
        limits: What each process may take.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    dtype: FeatureDtype | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    facts: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    resume: bool = False
    clip: bool = False
    strict: bool = False
    skip_bad: bool = False
    shard_mib: int | None = None
    limits: ReaderLimits = field(default_factory=ReaderLimits)


def pack(
    sources: Sequence[Path], out: Path, options: PackOptions | None = None, *, say: Say = _print_now, bar: bool = False
) -> DatasetInfo:
    """Convert files or folders into a bag store.

    The sources are opened in limited child processes only. Nothing a reader accepts exists before the last moment. If
    the conversion is interrupted, refused or out of disk space, finished shards stay for `resume`.

    Args:
        sources: Files, or folders, which are searched all levels down.
        out: Directory of the store; must be empty or absent, or hold an unfinished conversion if `resume` is set.
        options: See `PackOptions`.
        say: Receives every finding, one line each.
        bar: Show a progress bar if standard output is a terminal.

    Returns:
        The facts of the finished store.

    Raises:
        DataError: A source is unknown or mixes formats, encoders or resolutions, contradicts the labels, or holds what
            its producer must correct.
        EnvironmentProblem: The store cannot be written.
    """
    options = options or PackOptions()
    lock = DirectoryLock(out)
    try:
        state = PackState(out)
        if not options.resume:
            lock.require_empty()
        elif state.is_complete:
            state.tidy()
            say(
                f"{out}: this store is complete; there is nothing to resume. The sources, labels and settings given "
                "now were not looked at; give another --out to convert with them"
            )
            return DatasetInfo.model_validate_json((out / DATASET_FILE).read_bytes())
        else:
            state.require_ours()
        return _Conversion(sources, state, options, say, bar=bar and sys.stdout.isatty()).run()
    finally:
        lock.release()


@dataclass(frozen=True)
class _Tables:
    """Labels and imported splits of the planned slides.

    The label rows of a slide that is left out later stay, so that a reader asks for it.
    """

    matcher: LabelMatcher
    slide_ids: tuple[str, ...]
    labels: pd.DataFrame | None
    label_file: bytes | None
    splits: bytes | None

    def splits_of(self, stored_ids: tuple[str, ...]) -> bytes | None:
        """The splits; made again without the slides that were left out since, which need not be in a part."""
        return self.splits if stored_ids == self.slide_ids else self.matcher.splits(stored_ids, self.labels)


class _Conversion:
    """One run of the command."""

    def __init__(self, sources: Sequence[Path], state: PackState, options: PackOptions, say: Say, *, bar: bool) -> None:
        self._sources = sources
        self._state = state
        self._options = options
        self._say = say
        self._bar = bar
        self._read = sent_options(options.read)
        self._num_said = 0

    def run(self) -> DatasetInfo:
        """Scan, plan, write, publish."""
        size = self._options.workers or _num_cpus()
        is_begun = self._state.is_begun
        try:
            with WorkerPool(size, self._options.limits) as pool:
                scan = scan_sources(self._sources, self._read, pool, self._say)
                plan = self._plan(scan)
                tables = self._tables(scan, plan)
                is_begun = True
                self._begin(scan, plan)
                results, summary = self._write(plan, pool)
            self._refuse(_all_problems(plan, results))
            if not any(result.info is not None for result in results.values()):
                raise DataError(_refusal(_all_problems(plan, results), "there is nothing else to convert"))
            self._refuse_changed(scan, plan)
            return self._publish(scan, plan, results, tables, summary)
        except BaseException:
            if is_begun:
                self._leave()
            raise

    def _plan(self, scan: Scan) -> Plan:
        for line in _scan_lines(scan, self._options.facts):
            self._say(line)
        plan = make_plan(
            scan,
            dtype=self._options.dtype,
            given_facts=self._options.facts,
            read=self._read,
            shard_bytes=None if self._options.shard_mib is None else self._options.shard_mib << 20,
            skip_bad=self._options.skip_bad,
        )
        if plan.no_tissue:
            self._say(f"no tissue, left out: {first_of(plan.no_tissue, limit=20)}")
        self._say_problems(plan.problems)
        self._refuse(plan.problems)
        return plan

    def _tables(self, scan: Scan, plan: Plan) -> _Tables:
        """Labels and splits of all planned slides, so that what does not fit is refused before the conversion."""
        matcher = LabelMatcher(self._options.labels, plan.no_tissue, self._say)
        carried = {slide_id: row for unit in scan.units for slide_id, row in unit.opened.labels.items()}
        slide_ids = tuple(slide.header.slide_id for slide in plan.slides)
        labels = matcher.of_store(slide_ids, carried)
        label_file = None if labels is None else labels_to_bytes(labels, self._state.store)
        splits = matcher.splits(slide_ids, labels)
        for line in matcher.lines_to_use():
            self._say(line)
        return _Tables(matcher, slide_ids, labels, label_file, splits)

    def _begin(self, scan: Scan, plan: Plan) -> None:
        settings = {
            "SOURCE": [str(path) for path in self._sources],
            "--dtype": plan.dtype,
            "--shard-mib": self._options.shard_mib,
            "version of asmil": __version__,
        }
        stated = {**self._read, **self._options.facts}
        settings |= {f"--{name.replace('_', '-')}": value for name, value in stated.items() if value is not None}
        if self._state.is_begun:
            self._state.check_same(settings, scan.fingerprints, self._say)
        self._state.begin(settings, scan.fingerprints)
        self._state.add_problems(plan.problems)

    def _write(self, plan: Plan, pool: WorkerPool) -> tuple[dict[str, ShardResult], str]:
        options, state = self._options, self._state
        conditions = {"clip": options.clip, "skip_bad": options.skip_bad, **asdict(options.limits)}
        results = state.finished(plan.shards, conditions)
        if results:
            self._say(f"{len(results)} of {len(plan.shards)} shards were finished before and are kept")
        for result in results.values():
            self._say_problems(result.problems)
        shards = [shard for shard in plan.shards if shard.name not in results]
        self._require_space(sum(shard.nbytes for shard in shards))
        num_bags, num_values = sum(len(shard.slides) for shard in shards), sum(shard.num_values for shard in shards)
        with Progress(num_bags, num_values, self._say, bar=self._bar) as progress:
            writer = ShardWriter(state.store, progress, clip=options.clip, skip_bad=options.skip_bad)
            for shard, result in write_shards(plan, shards, writer, pool, progress.tick):
                results[shard.name] = result
                if result.problems:
                    self._say_problems(result.problems)
                    state.add_problems(_paths(plan, results))
                if not result.is_refused(skip_bad=options.skip_bad):
                    state.finish_shard(shard, result, conditions)
        return results, progress.summary()

    def _require_space(self, num_bytes: int) -> None:
        usage = shutil.disk_usage(self._state.store)
        if usage.total and num_bytes > usage.free:
            raise EnvironmentProblem(
                f"{self._state.store}: the store takes {num_bytes} more bytes, {usage.free} bytes are free; free space "
                "or choose another place"
            )

    def _refuse(self, problems: Mapping[str, Problem]) -> None:
        bad = {name: problem for name, problem in problems.items() if problem.kind == "content"}
        if bad and not self._options.skip_bad:
            them = "it" if len(bad) == 1 else "them"
            raise DataError(_refusal(bad, f"correct {them}, or leave {them} out with --skip-bad"))
        if problems and self._options.strict:
            raise DataError(_refusal(problems, "--strict was given"))

    def _refuse_changed(self, scan: Scan, plan: Plan) -> None:
        changed = {path for path, before in scan.fingerprints.items() if fingerprint(Path(path)) != before}
        if not changed:
            return
        for shard in plan.shards:
            if any(slide.path in changed for slide in shard.slides):
                self._state.forget_shard(shard)
        self._state.add_problems(changed)
        raise DataError(
            f"{len(changed)} sources changed while they were converted: {first_of(sorted(changed))}; wait until they "
            "are complete"
        )

    def _publish(
        self,
        scan: Scan,
        plan: Plan,
        results: Mapping[str, ShardResult],
        tables: _Tables,
        summary: str,
    ) -> DatasetInfo:
        store = self._state.store
        in_order = [result for shard in plan.shards if (result := results[shard.name]).info is not None]
        rows = {
            slide_id: IndexRow(*row)._replace(shard=position)
            for position, result in enumerate(in_order)
            for slide_id, row in result.rows.items()
        }
        problems = _all_problems(plan, results)
        provenance = self._provenance(scan, plan, problems, in_order) | tables.matcher.provenance
        facts = plan.facts.model_copy(update={"provenance": provenance})
        info = publish_store(
            store,
            StoreContent(
                facts=facts,
                num_features=plan.num_features,
                dtype=plan.dtype,
                coord_dtype=plan.coord_dtype,
                has_instance_labels=plan.has_instance_labels,
                shards=tuple(result.info for result in in_order if result.info is not None),
                rows=rows,
                labels=tables.label_file,
                splits=tables.splits_of(tuple(rows)),
            ),
        )
        self._state.tidy()
        clipped = facts.provenance["clipped"]
        if clipped:
            self._say(f"clipped: {first_of([f'{count} values of {name}' for name, count in clipped.items()])}")
        if problems:
            shown = first_of(list(problems), limit=_SHOWN_PROBLEMS)
            self._say(f"{len(problems)} left out: {shown}; the reasons are in {store / DATASET_FILE}")
        self._say(
            f"wrote {store}: {info.num_bags} bags, {info.num_instances} instances x {info.num_features} {info.dtype}, "
            f"dataset {info.dataset_id[:16]}; {summary}"
        )
        return info

    def _provenance(
        self, scan: Scan, plan: Plan, problems: Mapping[str, Problem], results: Sequence[ShardResult]
    ) -> dict[str, Any]:
        return {
            "format": scan.format,
            "found": scan.units[0].opened.reason,
            "sources": [str(path) for path in self._sources],
            "num_files": len(scan.units),
            "no_tissue": list(plan.no_tissue),
            "left_out": {name: problem.reason for name, problem in problems.items()},
            "clipped": {name: count for result in results for name, count in result.clipped.items()},
            "converter": f"asmil {__version__}",
        }

    def _say_problems(self, problems: Mapping[str, Problem]) -> None:
        for name, problem in problems.items():
            self._num_said += 1
            if self._num_said <= _SHOWN_PROBLEMS:
                word = "to be corrected" if problem.kind == "content" and not self._options.skip_bad else "left out"
                self._say(f"{word}: {name}: {problem.reason}")
            elif self._num_said == _SHOWN_PROBLEMS + 1:
                self._say("more are listed at the end")

    def _leave(self) -> None:
        """Keep what the next run can use, and say so."""
        state = self._state
        state.remove_temporary()
        if state.is_complete:
            return
        num_finished = state.num_finished
        if num_finished == 0:
            state.remove()
            return
        self._say(f"{num_finished} finished shards are kept; give --resume with the same command to go on")


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all_problems(plan: Plan, results: Mapping[str, ShardResult]) -> dict[str, Problem]:
    """All problems by slide or path, in the order of the plan."""
    found = dict(plan.problems)
    for shard in plan.shards:
        found |= results[shard.name].problems
    return found


def _paths(plan: Plan, results: Mapping[str, ShardResult]) -> set[str]:
    """The files that gave a problem so far."""
    names = {name for result in results.values() for name in result.problems}
    return {*plan.problems, *(slide.path for slide in plan.slides if slide.header.slide_id in names)}


def _refusal(problems: Mapping[str, Problem], advice: str) -> str:
    lines = [f"{name}: {problem.reason}" for name, problem in problems.items()]
    if len(lines) == 1:
        return f"{lines[0]}; {advice}"
    return f"{len(lines)} slides or files cannot be converted; {advice}:\n  " + "\n  ".join(lines)


def _scan_lines(scan: Scan, facts: Mapping[str, Any]) -> list[str]:
    first = scan.units[0]
    if len(scan.units) == 1:
        lines = [f"{first.path}: {scan.format}, because it is {first.opened.reason}"]
    else:
        lines = [f"{len(scan.units)} files: {scan.format}, because {first.path.name} is {first.opened.reason}"]
    if scan.ignored:
        lines.append(f"left alone in the source folder: {first_of([path.name for path in scan.ignored])}")
    is_told = any(facts.get(name) is not None for name in ("mpp", "magnification"))
    notes = dict.fromkeys(note for unit in scan.units for note in unit.opened.notes)
    return lines + [note for note in notes if not (is_told and ASK_FOR_RESOLUTION in note)]
