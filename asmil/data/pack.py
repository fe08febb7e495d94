"""Convert feature files that other tools wrote into one bag store: `python -m asmil.data.pack SOURCE... --out STORE`.

What each file is gets decided by its content and printed. Slides without tissue are listed and left out. Nothing is
mixed silently: one store has one source format, one encoder and one resolution.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from asmil import __version__
from asmil.data.labels import first_of
from asmil.data.packing.matching import LabelMatcher, LabelOptions, add_label_arguments, label_options
from asmil.data.schema import DatasetFacts, DatasetInfo, FeatureDtype
from asmil.data.sources import Detected, ReadOptions, Source, SourceFormat, detect, find_files
from asmil.data.store import BagStore
from asmil.data.writer import BagWriter
from asmil.errors import DataError, run_command

__all__ = ["PackOptions", "main", "pack"]

_FACT_FIELDS = ("encoder", "magnification", "mpp", "tile_size", "coord_unit", "coord_origin")


@dataclass(frozen=True)
class PackOptions:
    """What a user tells the conversion beyond sources and target.

    Attributes:
        read: Options of the readers.
        dtype: Dtype of the store; None takes the default of the source format.
        labels: Label table to put beside the bags.
        facts: What the sources do not say about themselves: any of encoder, magnification, mpp, tile_size.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    dtype: FeatureDtype | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    facts: Mapping[str, Any] = field(default_factory=dict)


def pack(
    sources: Sequence[Path], out: Path, options: PackOptions | None = None, *, say: Callable[[str], None] = print
) -> DatasetInfo:
    """Convert files or folders into a bag store.

    Args:
        sources: Files, or folders of per-slide files.
        out: Directory of the store; must be empty or absent.
        options: See `PackOptions`.
        say: Receives every finding, one line each.

    Returns:
        The facts of the finished store.

    Raises:
        DataError: A source is unknown, damaged, mixes formats, encoders or resolutions, or contradicts the labels.
        EnvironmentProblem: The store cannot be written.
    """
    options = options or PackOptions()
    found = find_files(sources)
    detected = [detect(path) for path in found.files]
    source_format = _only_format(detected)
    for line in _detection_lines(detected, found.ignored):
        say(line)
    opened = [source_format.open(item.path, options.read) for item in detected]
    for note in dict.fromkeys(note for source in opened for note in source.notes):
        say(note)
    no_tissue = tuple(slide_id for source in opened for slide_id in source.no_tissue)
    if no_tissue:
        say(f"no tissue, left out: {first_of(no_tissue, limit=20)}")
    facts = _merge_facts([item.path for item in detected], opened, options.facts)
    facts = facts.model_copy(update={"provenance": _provenance(detected, sources, no_tissue)})
    _write(out, opened, facts, options.dtype or source_format.dtype, LabelMatcher(options.labels, no_tissue, say))
    info = BagStore.open(str(out)).info
    say(
        f"wrote {out}: {info.num_bags} bags, {info.num_instances} instances x {info.num_features} {info.dtype}, "
        f"dataset {info.dataset_id[:16]}"
    )
    return info


def _only_format(detected: Sequence[Detected]) -> SourceFormat:
    first = detected[0]
    for item in detected:
        if item.format is not first.format:
            raise DataError(
                f"{first.path} is {first.format.name} and {item.path} is {item.format.name}; a store is made from one "
                "format: convert them to separate stores"
            )
    return first.format


def _detection_lines(detected: Sequence[Detected], ignored: Sequence[Path]) -> list[str]:
    first = detected[0]
    if len(detected) == 1:
        lines = [f"{first.path}: {first.format.name}, because it is {first.reason}"]
    else:
        lines = [f"{len(detected)} files: {first.format.name}, because {first.path.name} is {first.reason}"]
    if ignored:
        lines.append(f"left alone in the source folder: {first_of([path.name for path in ignored])}")
    return lines


def _merge_facts(paths: Sequence[Path], opened: Sequence[Source], given: Mapping[str, Any]) -> DatasetFacts:
    """The facts of all files; a value that is known twice must be the same."""
    merged: dict[str, tuple[Any, str]] = {
        name: (value, f"--{name.replace('_', '-')}") for name, value in given.items() if value is not None
    }
    for path, item in zip(paths, opened, strict=True):
        stated = {name: getattr(item.facts, name) for name in _FACT_FIELDS} | item.facts.facts
        for name, value in stated.items():
            if value is None:
                continue
            known, source = merged.setdefault(name, (value, str(path)))
            if known != value:
                raise DataError(
                    f"{path}: {name} is {value!r}, but {source} says {known!r}; a store holds features of one encoder "
                    "at one resolution: convert them to separate stores"
                )
    values = {name: value for name, (value, _) in merged.items()}
    extra = {name: value for name, value in values.items() if name not in _FACT_FIELDS}
    return DatasetFacts(**{name: value for name, value in values.items() if name in _FACT_FIELDS}, facts=extra)


def _provenance(detected: Sequence[Detected], sources: Sequence[Path], no_tissue: Sequence[str]) -> dict[str, Any]:
    return {
        "format": detected[0].format.name,
        "found": detected[0].reason,
        "sources": [str(path) for path in sources],
        "num_files": len(detected),
        "no_tissue": list(no_tissue),
        "converter": f"asmil {__version__}",
    }


def _write(out: Path, opened: Sequence[Source], facts: DatasetFacts, dtype: FeatureDtype, labels: LabelMatcher) -> None:
    headers = [header for source in opened for header in source.slides]
    if not headers:
        raise DataError(f"{out}: none of the sources holds a slide with tissue; there is nothing to convert")
    with BagWriter(out, num_features=headers[0].num_features, dtype=dtype, facts=facts) as writer:
        for source in opened:
            for header in source.slides:
                bag = source.read(header.slide_id)
                writer.add(
                    header.slide_id,
                    bag.features_ND,
                    coords_N2=bag.coords_N2,
                    instance_labels_N=bag.instance_labels_N,
                )
        carried = {slide_id: row for source in opened for slide_id, row in source.labels.items()}
        frame = labels.of_store([header.slide_id for header in headers], carried)
        if frame is not None:
            writer.set_labels(frame)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m asmil.data.pack", description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="file, or folder of per-slide files")
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="directory of the new store")
    add_label_arguments(parser)
    parser.add_argument("--dtype", choices=get_args(FeatureDtype), help="default: float32 classic sets, float16 slides")
    parser.add_argument("--drop-last-column", action="store_true", help="the last feature column is the label")
    parser.add_argument("--patches", type=Path, metavar="FOLDER", help="CLAM's folder of coordinate files")
    parser.add_argument("--encoder", help="network that made the features")
    parser.add_argument("--magnification", type=float, help="objective magnification of the tiles")
    parser.add_argument("--mpp", type=float, help="micrometres per pixel of the tiles")
    parser.add_argument("--tile-size", type=int, help="edge of a tile in pixels")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: Words after the program name; None takes those of the process.
    """
    given = _parser().parse_args(arguments)
    options = PackOptions(
        read=ReadOptions(drop_last_column=given.drop_last_column, patches=given.patches),
        dtype=given.dtype,
        labels=label_options(given),
        facts={name: getattr(given, name) for name in ("encoder", "magnification", "mpp", "tile_size")},
    )
    pack(given.sources, given.out, options)


if __name__ == "__main__":
    run_command(main)
