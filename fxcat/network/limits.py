"""What users allow to go: `Limits` by patterns of names, resolved for the gates of a network."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from fxcat.checks import check_flag, check_instance, check_integer, check_number, shown
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
        check_integer(self.least, "Limits(least)", least=1, kind="number of channels", optional=True)
        check_integer(self.multiple_of, "Limits(multiple_of)", least=1, kind="number of channels", optional=True)
        check_number(self.most_pruned, "Limits(most_pruned)", least=0, most=1, kind="share", optional=True)
        check_flag(self.keep, "Limits(keep)", optional=True)
        for name, plain in (("least", int), ("multiple_of", int), ("most_pruned", float)):  # of NumPy, too
            if getattr(self, name) is not None:
                object.__setattr__(self, name, plain(getattr(self, name)))

    def then(self, other: Limits) -> Limits:
        """These limits, and in place of what another one sets that. Raises `InputError` for anything but limits."""
        check_instance(other, Limits, "other")
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
        for pattern, limit in limits.items():
            _check(pattern, limit, *names)
        of_groups, of_sections = ([_joined(limits, name) for name in part] for part in names)
        return cls(tuple(of_groups), tuple(of_sections))

    def in_steps(self, step: int, widths: Sequence[int]) -> GateLimits:
        """The same, and widths that are no multiple of anything yet are multiples of so many channels; in groups that
        have not twice as many, of the half, and so on. `widths`: channels of every group."""
        stepped = (
            limits if limits.multiple_of is not None else replace(limits, multiple_of=_step_for(step, width))
            for limits, width in zip(self.groups, widths, strict=True)
        )
        return replace(self, groups=tuple(stepped))

    def __bool__(self) -> bool:
        return any(limit != NONE for limit in (*self.groups, *self.sections))

    @property
    def hold_units(self) -> bool:
        """Whether of some group more has to stay than one unit."""
        return any(x.keep or (x.least or 1) > 1 or x.most_pruned is not None for x in self.groups)

    @property
    def aligned(self) -> bool:
        """Whether some width has to be a multiple of something."""
        return any((limit.multiple_of or 1) > 1 for limit in self.groups)


def _step_for(step: int, width: int) -> int | None:
    while 2 * step > width and step > 1:
        step //= 2
    return step if step > 1 else None


def _joined(limits: Mapping[str, Limits], name: str) -> Limits:
    found = NONE
    for pattern, limit in limits.items():
        if fnmatch.fnmatchcase(name, pattern):
            found = found.then(limit)
    return found


def _check(pattern: str, limit: Limits, groups: Sequence[str], sections: Sequence[str]) -> None:
    if not isinstance(limit, Limits) or not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"limits={{{shown(pattern)}: {shown(limit)}}} is none",
            remedy='write {"layer1.*": fxcat.Limits(least=8)}, for example',
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


def check_limits(limits: Any) -> None:
    """Raise `InputError` for anything but a mapping, or None."""
    remedy = 'write limits={"layer1.*": fxcat.Limits(least=8)}'
    check_instance(limits, Mapping, "limits", remedy=remedy, optional=True)
