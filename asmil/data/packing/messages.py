"""What the conversion and its worker processes say to each other: JSON lines, checked on arrival.

A worker that reads a hostile file may say anything, so every reply is validated before it is used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from asmil.config import StrictModel
from asmil.data.schema import CoordDtype, DatasetFacts, FeatureDtype, ShardInfo
from asmil.data.sources.base import LabelValue

__all__ = [
    "ConvertRequest",
    "Header",
    "Opened",
    "PlannedSlide",
    "Problem",
    "ProblemKind",
    "ShardResult",
    "checked",
    "one_line",
]


def one_line(text: str) -> str:
    r"""Text without control characters, such as those that would move the cursor of a terminal.

    Example:
        >>> one_line("a\x1b[2Jb\n")
        'a\\x1b[2Jb\\n'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


ProblemKind = Literal["unreadable", "unknown", "content"]
MAX_NAME = 4096  # characters

_Name = Annotated[str, Field(max_length=MAX_NAME)]
_Text = Annotated[str, Field(max_length=100_000), AfterValidator(one_line)]
_Model = TypeVar("_Model", bound=BaseModel)


class Problem(StrictModel):
    """Why a slide or unit is not in the store.

    Attributes:
        kind: `unreadable` (damaged or hostile), `unknown` (no known format), or `content` (its producer must fix it).
        reason: One clause, without the name of the slide or file.
    """

    kind: ProblemKind
    reason: _Text


class Header(StrictModel):
    """`SlideHeader` on its way from a worker."""

    slide_id: _Name
    num_instances: int = Field(ge=1, le=1 << 40)
    num_features: int = Field(ge=0, le=1 << 24)
    coords: CoordDtype | None
    has_instance_labels: bool


class Opened(StrictModel):
    """What a unit says before its features are read."""

    format: _Name
    reason: _Text
    dtype: FeatureDtype
    slides: tuple[Header, ...]
    facts: DatasetFacts
    no_tissue: tuple[_Name, ...]
    labels: dict[_Name, dict[_Name, LabelValue]]
    notes: tuple[_Text, ...]


class PlannedSlide(StrictModel):
    """A slide of a shard and the unit that holds it."""

    path: str
    format: str
    header: Header


class ConvertRequest(StrictModel):
    """The order to write one shard.

    Attributes:
        store: Directory of the store.
        name: Name of the shard file below it.
        slides: Its slides, in order.
        skip: Ids of slides that are not to be touched.
        read: Options of the readers, as `worker.read_options` takes them.
        num_features: Width D.
        dtype: Dtype of the features.
        coord_dtype: Dtype of the coordinates; None if there are none.
        has_instance_labels: Whether there is a truth per instance.
        clip: Replace finite values beyond the range of the dtype by its ends.
        skip_bad: Go on after content problems, without those slides.
    """

    store: str
    name: str
    slides: tuple[PlannedSlide, ...]
    skip: tuple[str, ...] = ()
    read: dict[str, Any]
    num_features: int
    dtype: FeatureDtype
    coord_dtype: CoordDtype | None
    has_instance_labels: bool
    clip: bool
    skip_bad: bool


_Count = Annotated[int, Field(ge=0, lt=1 << 64)]


class ShardResult(StrictModel):
    """What became of a shard.

    Attributes:
        info: The finished file; None if it was not written, because of a content problem or for want of slides.
        rows: Index row of each stored slide, in file order; the shard position is filled in by the reader of this.
        problems: Slides that are not in the file.
        clipped: Number of values that were clipped, by slide.
    """

    info: ShardInfo | None
    rows: dict[_Name, Annotated[tuple[_Count, ...], Field(min_length=11, max_length=11)]]
    problems: dict[_Name, Problem]
    clipped: dict[_Name, _Count]

    def is_refused(self, *, skip_bad: bool) -> bool:
        """Whether a slide must be corrected before the shard can be written."""
        return not skip_bad and any(problem.kind == "content" for problem in self.problems.values())


def checked(model: type[_Model], reply: Any) -> _Model | None:
    """A reply as the record it should be; None if it is something else."""
    try:
        return model.model_validate(reply)
    except ValidationError:
        return None
