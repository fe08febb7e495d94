"""Which label columns hold a survival outcome, and how they are read: the one place where polarity is turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from asmil.data.config import LabelColumns
from asmil.errors import ConfigError, DataError
from tasks.labels import configured, label_column, name_some, numbers

__all__ = ["OutcomeColumns"]


@dataclass(frozen=True)
class OutcomeColumns:
    """The columns of a survival outcome.

    Attributes:
        time: Column of the follow-up time.
        mark: Column of 0 and 1.
        marks_censoring: 1 in `mark` means that the event was not observed; without it, that it was.
    """

    time: str
    mark: str
    marks_censoring: bool = False

    @classmethod
    def configured(cls, columns: LabelColumns, kind: str) -> OutcomeColumns:
        """The columns that `data.labels` names.

        Args:
            columns: Meaning of the label columns.
            kind: Kind of the task, for the message.

        Raises:
            ConfigError: `time` is missing, or both of `event` and `censor` are.
        """
        time = configured(columns.time, "time", kind)
        if columns.censor is not None:
            return cls(time, columns.censor, marks_censoring=True)
        if columns.event is None:
            raise ConfigError(
                f"data.labels.event: required by task.kind {kind}, but missing; name the column that is 1 where the "
                "event was observed, or under data.labels.censor one that is 1 where it was not"
            )
        return cls(time, columns.event)

    @property
    def role(self) -> str:
        """Key of `mark` under `data.labels`."""
        return "censor" if self.marks_censoring else "event"

    def read(self, labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes of a label frame, checked.

        Args:
            labels: Label frame.

        Returns:
            Float64 times, and int64 marks that are 1 where the event was observed.

        Raises:
            DataError: A column is missing, a time is negative or not finite, or a mark is neither 0 nor 1.
        """
        time_B = numbers(labels, self.time, "time")
        if (time_B < 0).any():
            raise DataError(
                f"label column {self.time!r} is negative for {name_some(labels.index, time_B < 0)}; "
                f"expected the time from diagnosis to event or last follow-up"
            )
        mark_B = numbers(labels, self.mark, self.role)
        broken = ~np.isin(mark_B, (0, 1))
        if broken.any():
            found = label_column(labels, self.mark, self.role)[broken].tolist()[0]
            seen, unseen = (0, 1) if self.marks_censoring else (1, 0)
            raise DataError(
                f"label column {self.mark!r} is neither 0 nor 1 for {name_some(labels.index, broken)} (first: "
                f"{found!r}); use {seen} where the event was observed and {unseen} where the follow-up was censored"
            )
        event_B = 1 - mark_B if self.marks_censoring else mark_B
        return time_B, event_B.astype(np.int64)
