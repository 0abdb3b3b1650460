"""What users allow to go: `Limits` by patterns of names, resolved for the gates of a network."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from fxcat.errors import InputError
from fxcat.records import Group, SectionInfo


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a group of units, or a section, may shrink; what is None is not limited.

    `least`: units that stay (all where there are fewer). `most_pruned`: the largest share of the units that may go, in
    [0, 1]. `multiple_of`: the number of channels is a multiple of this (as `round_to`, for single groups). `keep`: it
    stays as it is; False lifts what an earlier pattern kept. Sections have `keep` only; a section that goes takes the
    groups inside with it, whatever their limits are.

    Raises `InputError` for values outside these ranges.
    """

    least: int | None = None
    most_pruned: float | None = None
    multiple_of: int | None = None
    keep: bool | None = None

    def __post_init__(self) -> None:
        for name, value in (("least", self.least), ("multiple_of", self.multiple_of)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"Limits({name}={value!r}) is no number of channels", remedy="give an integer ≥ 1")
        if self.most_pruned is not None and not 0 <= self.most_pruned <= 1:
            raise InputError(
                f"Limits(most_pruned={self.most_pruned!r}) is no share", remedy="give a number in [0, 1], such as 0.5"
            )

    def then(self, other: Limits) -> Limits:
        """These limits, and in place of what another one sets that."""
        given = {f.name: getattr(other, f.name) for f in fields(other) if getattr(other, f.name) is not None}
        return replace(self, **given)

    def least_of(self, units: int) -> int:
        """How many of so many units stay at least."""
        if self.keep:
            return units
        share = 0 if self.most_pruned is None else math.ceil((1 - self.most_pruned) * units - 1e-9)
        return min(units, max(1, self.least or 1, share))


NONE = Limits()


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Limits of every group and every section of the start network, in their order."""

    groups: tuple[Limits, ...]
    sections: tuple[Limits, ...]

    @classmethod
    def resolved(
        cls, limits: Mapping[str, Limits], groups: Sequence[Group], sections: Sequence[SectionInfo]
    ) -> GateLimits:
        """For every group and section what the patterns that match its name set; later patterns override earlier ones.

        Raises `InputError` for a pattern that matches nothing, and for limits that fit nothing that it matches.
        """
        names = [g.name for g in groups], [s.name for s in sections]
        if not isinstance(limits, Mapping):
            raise InputError(
                f"limits= is a {type(limits).__name__}", remedy='write limits={"layer1.*": fxcat.Limits(least=8)}'
            )
        for pattern, limit in limits.items():
            _check(pattern, limit, *names)
        of_groups, of_sections = ([_joined(limits, name) for name in part] for part in names)
        return cls(tuple(of_groups), tuple(of_sections))

    def __bool__(self) -> bool:
        return any(limit != NONE for limit in (*self.groups, *self.sections))

    @property
    def aligned(self) -> bool:
        """Whether some width has to be a multiple of something."""
        return any((limit.multiple_of or 1) > 1 for limit in self.groups)


def _joined(limits: Mapping[str, Limits], name: str) -> Limits:
    found = NONE
    for pattern, limit in limits.items():
        if fnmatch.fnmatchcase(name, pattern):
            found = found.then(limit)
    return found


def _check(pattern: str, limit: Limits, groups: Sequence[str], sections: Sequence[str]) -> None:
    if not isinstance(limit, Limits):
        raise InputError(
            f"limits={{{pattern!r}: {limit!r}}} is none", remedy="write fxcat.Limits(least=8), for example"
        )
    if pattern == "*":  # everything, whatever there is
        return
    matched = [bool(fnmatch.filter(names, pattern)) for names in (groups, sections)]
    if not any(matched):
        some = ", ".join((*groups[:3], *sections[:1]))
        raise InputError(
            f"limits= names {pattern!r}, which matches no group and no section",
            remedy=f"use names of net.summary() ({some}, …); a group is named after the first layer that produces it",
        )
    if not matched[0] and replace(limit, keep=None) != NONE:
        raise InputError(
            f"limits= gives widths to {pattern!r}, which matches sections only", remedy="sections have keep= only"
        )
