"""The task kinds an experiment can name, as one tagged union; adding a task is one file and one entry here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.benchmark import BenchmarkConfig
from tasks.classification import ClassificationConfig
from tasks.survival import SurvivalConfig

__all__ = ["TaskConfig"]

TaskConfig = Annotated[ClassificationConfig | SurvivalConfig | BenchmarkConfig, Field(discriminator="kind")]
