"""The `data` and `protocol` sections of an experiment."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from asmil.config import StrictModel

__all__ = ["CacheConfig", "DataConfig", "InnerConfig", "LabelColumns", "ProtocolConfig"]


class LabelColumns(StrictModel):
    """Which columns of the label table mean what.

    Attributes:
        table: CSV, TSV or Parquet file of labels; None reads the table inside the store.
        id: Column of stored slide (or bag) ids.
        group: Column of the unit that must never be split, usually the patient; None if there is none.
        target: Column of the class label.
        time: Column of the follow-up time.
        event: Column that is 1 where the event was observed.
        censor: Column that is 1 where the event was not observed, in place of `event`.
        split: Column of an official split with values train, val and test.
        covariates: Clinical columns that must be there and agree within a group, for baselines beside the model.
    """

    table: str | None = None
    id: str = "slide"
    group: str | None = None
    target: str | None = None
    time: str | None = None
    event: str | None = None
    censor: str | None = None
    split: str | None = None
    covariates: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_polarity(self) -> LabelColumns:
        if self.event is not None and self.censor is not None:
            raise ValueError("event and censor are opposite ways to mark an outcome: set one of them to null")
        return self


class CacheConfig(StrictModel):
    """Where every machine keeps whole shards of a remote store.

    Copies are shared by all processes of a machine. Those of stores that no process reads are removed, the ones that
    were not used for longest first, when the limits ask for it. Shards that have no room are read by range.

    Attributes:
        directory: A directory of its own on a local disk, made if absent; one with other files in it is refused.
        max_gib: Upper bound of all copies in the directory, in GiB; at least the largest shard.
        min_free_gib: What is to stay free on that disk, in GiB.
    """

    directory: str = Field(min_length=1)
    max_gib: float = Field(gt=0)
    min_free_gib: float = Field(default=10, ge=0)

    @field_validator("directory")
    @classmethod
    def _is_local(cls, directory: str) -> str:
        if "://" in directory:
            raise ValueError(f"a cache is a directory on a disk of the machine, got the address {directory!r}")
        return directory


class DataConfig(StrictModel):
    """Where bags and labels are and how bags are batched.

    Attributes:
        store: Directory or URI of an Arrow bag store.
        cache: Where each machine keeps whole shards of a remote store; None reads every slide by range.
        read: `pread` copies what is read into memory of this process. `map` maps whole shards of a local store, or of
            a cached remote one: processes on a machine then share one copy, but a shard that is truncated in place
            while it is mapped kills the process that touches it. It takes effect where a batch is one slide and goes
            to the CPU; a GPU is fed from page-locked memory.
        labels: Meaning of the label columns.
        bag: `slide`: one bag per stored slide; `patient`: all slides of a group form one bag.
        batch_instances: Upper bound of instances in one micro-batch; a larger bag is a micro-batch of its own.
        prefetch_threads: Threads that read ahead; 0 reads in the training thread.
        prefetch_mib: Upper bound of the batches that are read ahead, in MiB; one batch is read ahead in any case.
        group_lengths: Form steps of bags of similar length, so that ranks are evenly loaded. A step is then no plain
            random sample of the bags, which losses over a whole step (Cox, ranking) and published protocols need.
        sample_instances: Train on this many random instances of a longer bag, others in every epoch; None trains on
            all. Evaluation always takes all.
        allow_missing: Drop labels without bags and bags without labels (listed in the log) instead of refusing.
    """

    store: str
    cache: CacheConfig | None = None
    read: Literal["pread", "map"] = "pread"
    labels: LabelColumns = LabelColumns()
    bag: Literal["slide", "patient"] = "slide"
    batch_instances: int = Field(default=100_000, ge=1)
    prefetch_threads: int = Field(default=2, ge=0, le=64)
    prefetch_mib: int = Field(default=1024, ge=1)
    group_lengths: bool = False
    sample_instances: int | None = Field(default=None, ge=1)
    allow_missing: bool = False


class InnerConfig(StrictModel):
    """The inner validation part cut from an outer training part: a holdout share, or k folds."""

    holdout: float | None = Field(default=None, gt=0, lt=1)
    folds: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _one_of(self) -> InnerConfig:
        if (self.holdout is None) == (self.folds is None):
            raise ValueError("give exactly one of holdout (a share) and folds (a number)")
        return self


class ProtocolConfig(StrictModel):
    """How bags are split and which numbers may be selected on.

    Attributes:
        scheme: `kfold` outer folds; `holdout` one random test part; `official` the split column of the label table;
            `given` the splits that were imported into the store.
        folds: Outer folds of `kfold`.
        repeats: Repetitions of the whole scheme with other split seeds.
        seeds: Trainings of each outer fold under `asmil.run --folds`; a search refits with `search.refit_seeds`.
        test_fraction: Test share of `holdout`.
        split_seed: Seed of the first repeat; repeat r uses split_seed + r.
        independent_bags: Bags have no groups and may be split one by one.
        epoch_rule: `last` epoch, or `best_validation`.
        inner: Validation part inside each outer training part.
        search: `nested`: one study per outer fold, scored on its inner validation part.
    """

    scheme: Literal["kfold", "holdout", "official", "given"] = "kfold"
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=1, ge=1)
    seeds: int = Field(default=1, ge=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    independent_bags: bool = False
    epoch_rule: Literal["last", "best_validation"] = "last"
    inner: InnerConfig = InnerConfig(holdout=0.15)
    search: Literal["nested"] = "nested"

    @model_validator(mode="after")
    def _given_once(self) -> ProtocolConfig:
        if self.scheme == "given" and self.repeats != 1:
            raise ValueError(f"imported splits are used as they are: set repeats to 1, got {self.repeats}")
        return self
