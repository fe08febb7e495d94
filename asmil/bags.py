"""Bags of instances and packed batches of them: what `asmil.data` makes and `asmil.nn` takes.

Bags are packed, never padded: the rows of all bags of a batch lie one after another and `offsets` says where each bag
begins. Shape letters used throughout the project:

    B bags in a batch    M instances in a batch (sum of N)    N instances in one bag
    D stored feature width    d inner width    K attention columns (k = head * T + token)    C outputs of a head
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from asmil.errors import DataError

__all__ = ["Bag", "BagBatch"]


@dataclass(frozen=True)
class Bag:
    """One bag: the instances of a slide, or of all slides of a patient.

    Attributes:
        bag_id: Identifier, unique in its cohort.
        features_ND: Instance features in the dtype they are stored in.
        coords_N2: Instance coordinates, if the store has them.
        slide_offsets: Int64 [S + 1]; slide s of the bag owns rows slide_offsets[s]:slide_offsets[s + 1].
        instance_labels_N: Int8 truth per instance, where the source has it; never an input of a model.
    """

    bag_id: str
    features_ND: Tensor
    coords_N2: Tensor | None = None
    slide_offsets: Tensor | None = None
    instance_labels_N: Tensor | None = None

    @property
    def num_instances(self) -> int:
        """Number of instances N."""
        return self.features_ND.shape[0]

    def take(self, rows: Tensor) -> Bag:
        """The bag with some of its instances.

        Args:
            rows: Int64, ascending row numbers without repeats.

        Returns:
            A bag of those rows and of the same slides, of which some may have no rows left.
        """
        return replace(
            self,
            features_ND=self.features_ND[rows],
            coords_N2=None if self.coords_N2 is None else self.coords_N2[rows],
            slide_offsets=None if self.slide_offsets is None else torch.searchsorted(rows, self.slide_offsets),
            instance_labels_N=None if self.instance_labels_N is None else self.instance_labels_N[rows],
        )


@dataclass(frozen=True)
class BagBatch:
    """Several bags packed into one tensor.

    Attributes:
        bag_ids: The B bags, in the order of their rows.
        features_MD: Features of all instances, bag after bag.
        offsets: Int64 [B + 1] on the CPU; bag b owns rows offsets[b]:offsets[b + 1].
        coords_M2: Coordinates, if every bag has them.
        slide_offsets: Int64 [S + 1] row boundaries of stored slides over the whole batch, if known: no neighbourhood
            reaches across them.
        seeds_B: Int64 [B] on the CPU: the random stream of each bag in this epoch; None draws from torch's own.
        extras: Further tensors an aggregator may need, by name.
    """

    bag_ids: tuple[str, ...]
    features_MD: Tensor
    offsets: Tensor
    coords_M2: Tensor | None = None
    slide_offsets: Tensor | None = None
    seeds_B: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def pack(cls, bags: Sequence[Bag], *, seeds: Sequence[int] | None = None, pin_memory: bool = False) -> BagBatch:
        """Pack bags in the given order.

        Args:
            bags: At least one bag; all of one feature width.
            seeds: One random stream per bag.
            pin_memory: Put the rows into page-locked memory, from which a GPU copies while the CPU goes on.

        Returns:
            The packed batch.

        Raises:
            DataError: No bags, a bag without instances, or bags of different widths.
        """
        if not bags:
            raise DataError("cannot pack a batch of no bags; give at least one bag")
        for bag in bags:
            if bag.num_instances == 0:
                raise DataError(f"bag {bag.bag_id!r} has 0 instances; expected at least 1: leave it out of the cohort")
        widths = {bag.features_ND.shape[1] for bag in bags}
        if len(widths) > 1:
            raise DataError(f"bags of different feature widths {sorted(widths)} cannot share a batch")
        lengths = torch.tensor([bag.num_instances for bag in bags], dtype=torch.int64)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return cls(
            bag_ids=tuple(bag.bag_id for bag in bags),
            features_MD=_join([bag.features_ND for bag in bags], pin_memory),
            offsets=offsets,
            coords_M2=_pack_coords(bags, pin_memory),
            slide_offsets=_pack_slide_offsets(bags, offsets),
            seeds_B=None if seeds is None else torch.tensor(list(seeds), dtype=torch.int64),
        )

    @property
    def num_bags(self) -> int:
        """Number of bags B."""
        return len(self.bag_ids)

    @property
    def num_instances(self) -> int:
        """Number of instances M."""
        return self.features_MD.shape[0]

    @property
    def lengths(self) -> list[int]:
        """Number of instances of each bag."""
        return self.offsets.diff().tolist()

    def to(self, device: torch.device | str) -> BagBatch:
        """The same batch with its per-instance tensors on another device; offsets and seeds stay on the CPU.

        From pinned memory the copies to a GPU are asynchronous. The batch may be dropped at once: torch hands a pinned
        block out again only when the copies from it are done, and then without asking the system for memory.
        """
        return replace(
            self,
            features_MD=self.features_MD.to(device, non_blocking=True),
            coords_M2=None if self.coords_M2 is None else self.coords_M2.to(device, non_blocking=True),
            extras={name: value.to(device, non_blocking=True) for name, value in self.extras.items()},
        )

    def with_features(self, features_MD: Tensor) -> BagBatch:
        """The same bags with other features, row for row."""
        return replace(self, features_MD=features_MD)


def _join(parts: Sequence[Tensor], pin_memory: bool) -> Tensor:
    if not pin_memory:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    return torch.cat(list(parts), out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=True))


def _pack_coords(bags: Sequence[Bag], pin_memory: bool) -> Tensor | None:
    coords = [bag.coords_N2 for bag in bags if bag.coords_N2 is not None]
    return _join(coords, pin_memory) if len(coords) == len(bags) else None


def _pack_slide_offsets(bags: Sequence[Bag], offsets: Tensor) -> Tensor | None:
    if any(bag.slide_offsets is None for bag in bags):
        return None
    starts = [bag.slide_offsets[:-1] + start for bag, start in zip(bags, offsets.tolist(), strict=False)]  # type: ignore[index]
    return torch.cat([*starts, offsets[-1:]])
