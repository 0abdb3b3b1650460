"""`GatedModule`: a network with gates, which can be trained, looked at, shrunk and finalized."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from fxcat.checks import check_instance, check_integer
from fxcat.choosing.widths import group_widths
from fxcat.errors import InputError
from fxcat.network.appraisal import Appraisal
from fxcat.network.called_as_model import CalledAsModel
from fxcat.network.copies import Copies
from fxcat.network.cost_model import CostModel
from fxcat.network.ddp import Wrappers
from fxcat.network.following import Led, described, left_to_close
from fxcat.network.gates import Gate, GatesByName, GateVector, check_setting, check_thetas, type_of_gates
from fxcat.network.latency import LatencyModel, LatencySource, PredictedLatency, TimedOp, attach_latency
from fxcat.network.limits import GateLimits, Limits
from fxcat.network.liveness import gates_inside, live_gates, live_parameters, parameters_gated_by
from fxcat.network.loaded_state import make_ready
from fxcat.network.methods import Methods, Turns
from fxcat.network.origin import KeptIndices, Origin
from fxcat.network.places import Places
from fxcat.network.program import GatePart, Program, Shrunk, Structure
from fxcat.network.recipe import Gates, Recipe, attach_recipe
from fxcat.network.weight_checks import check_own, check_unchanged, check_whole, check_without_bias, parameter_shapes
from fxcat.records import Cost, Target, check_target
from fxcat.summary import print_summary
from fxcat.utils.constant_tables import Table
from fxcat.utils.usual_modes import usual_modes

Policy = Literal["bernoulli", "ratio"]


_INSTALLING = threading.RLock()


class GatedModule(CalledAsModel):
    """A captured network with gates. Made by `fxcat.prepare`; call it like the model it was made from.

    Attributes and methods that it has not itself are those of the model: methods run the network with its gates.
    In `train()` every call samples the gates; in `eval()` a unit or section is open where θ > ½.
    """

    network: nn.Module
    """The model inside: its parameters and buffers under their names, no gates among them."""
    structure: Structure
    """What was found in the network as it is now: groups, sections, costs, and what is pinned."""
    start_structure: Structure
    """The same of the start network."""
    start_cost: Cost[int]
    """MACs and parameters of the start network."""
    policy: Policy = "bernoulli"
    """How its gates are trained."""
    unfinished: str | None = None
    """What trains the gates and has not ended."""
    is_resumed: bool = False
    """Whether its state is from the midst of a training of gates; a `GateController` that goes on from its own state
    takes that back."""
    limits: GateLimits
    """How far the groups and sections of the start network may shrink."""
    latency: LatencyModel | None = None
    """What the network takes where a `LatencyTable` was measured."""

    def __init__(
        self,
        network: nn.Module,
        program: Program,
        parts: tuple[GatePart, ...],
        cost_model: CostModel,
        structure: Structure,
        recipe: Recipe,
    ) -> None:
        super().__init__()
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        # first, so that the last parameters are those of the head, as in the model: people count from the end
        self.gate_vector = _vector(parts, type_of_gates(network)).to(device)
        self.network = network
        self.recipe = recipe
        """How the network became what it is; the last stage is that of this `prepare`."""
        self._set_structure(structure, cost_model)
        self.start_structure = structure
        self.start_cost = structure.cost
        self.limits = GateLimits.resolved({}, structure.groups, structure.sections)
        self.program = program
        self.parts = parts
        self.appraisal = Appraisal(self.gate_vector.theta.numel())
        """What gates were found to be worth in training."""
        self.wrappers = Wrappers()
        self._methods, self._turns = Methods(), Turns()
        self.copies = Copies()
        self._is_installed = False
        self._places: Places | None = None
        self.led = Led()
        self._origin: Origin | None = None
        """What has left it, once something has."""
        self._settled: dict[int, frozenset[str]] = {}
        """Gates that left the gate vector while what they gate stayed (the last unit of a group): their numbers at the
        start, and the parameters that hold it."""
        self.training = network.training  # its modules keep the modes that they are in
        self.gate_vector.train(network.training)
        self._own = frozenset((*self.__dict__, *self._modules))

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.copies.note(self)

    def install(self) -> None:
        """Make the graph the network's `forward`, unless it is: compiled when it is first run, since much of it never
        is, between shrinks or when only the summary is wanted."""
        if not self._is_installed:
            with _INSTALLING, torch.inference_mode(False):  # other threads wait; what is made is kept
                if not self._is_installed:
                    self.program.install(self.network)
                    self._places = Places(self.network)
                    self._is_installed = True
        elif self._places is not None and self._places.have_changed:
            self.program, cost_model, structure = self.program.renewed(self.network)
            self._set_structure(structure, cost_model)
            self._is_installed = False
            self.install()

    def _set_structure(self, structure: Structure, cost_model: CostModel) -> None:
        """What the network is, and what is derived from it."""
        self.structure, self.cost_model = structure, cost_model
        found = parameter_shapes(self.network)
        known = vars(self).get("_shapes", found)  # what has been registered since is the user's
        self._shapes = {name: shape for name, shape in found.items() if name in known}
        self._required, self._inside = Table(structure.required), Table(gates_inside(structure))

    def check_weights(self) -> None:
        """Raise `InputError` if the weights cannot become smaller: not those that the gates were made for, not whole,
        or without values."""
        check_own(self.gate_vector, "theta")
        check_unchanged(self.network, self._shapes)
        check_whole(self.network)

    @property
    def required(self) -> torch.Tensor:
        """`Structure.required` on the device of the gates."""
        return self._required.on(self.gate_vector.theta.device)

    @property
    def inside(self) -> torch.Tensor:
        """For every section the gates that guard nothing outside of it: section and gate numbers, shape (2, pairs)."""
        return self._inside.on(self.gate_vector.theta.device)

    def part_limits(self) -> list[tuple[int, Limits]]:
        """For every part of the gate vector, in its order: how many gates it had at the start, and its limits."""
        start = self.start_structure
        counts = [g.units for g in start.groups] + [1] * len(start.sections)
        part_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        firsts = torch.tensor([0, *(p.count for p in self.parts)]).cumsum(0)[:-1]
        numbers = part_of[self.gate_vector.numbers.cpu().long()[firsts]].tolist()
        limits = (*self.limits.groups, *self.limits.sections)
        return [(counts[n], limits[n]) for n in numbers]

    @property
    def last_batch(self) -> int:
        """Examples in the last batch: the length of the first list or tensor that was passed in."""
        return self.gate_vector.last_batch

    @property
    def gates(self) -> Mapping[str, Gate]:
        """The gates by name, in the order of the gate vector; as they are now, until the network becomes smaller."""
        result, start, vector = GatesByName(), 0, self.gate_vector
        for part in self.parts:
            result[part.name] = Gate(part.name, part.kind, vector, start, part.count, vector.shrunk)
            start += part.count
        return result

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """The network's own parameters: what the user's optimizer trains."""
        return self.network.parameters()

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The gates' probabilities θ, what the `GateController` trains; nothing once they are decided."""
        return (p for p in self.gate_vector.parameters() if p.requires_grad)

    def expected_cost(self) -> Cost[torch.Tensor]:
        """Expected MACs and parameters for one example, differentiable in θ; double scalars, absolute numbers."""
        return self.cost_model.cost(self.gate_vector.units, self.gate_vector.sections)

    def hard_cost(self) -> Cost[int]:
        """MACs and parameters of what `finalize` would return now."""
        return self.cost_model.cost_of(self.gate_vector.hard(), self.gate_vector.unit_count)

    @usual_modes()
    def live_gates(self) -> torch.Tensor:
        """Which gates of the start network guard something that `finalize` would leave, whether they are still gates or
        not; bool, shape (gates at the start,), on the CPU."""
        hard = self.gate_vector.hard()
        live = torch.zeros(sum(self.gate_vector.counts_at_start), dtype=torch.bool)
        live[self.gate_vector.numbers.cpu()] = live_gates(self.structure, hard)
        left = live_parameters(self.structure, hard)
        for number, names in self._settled.items():
            live[number] = not left.isdisjoint(names)
        return live

    def live_units(self) -> dict[str, int]:
        """What `finalize` would leave of the start network: for each of its groups the number of units, for each of its
        sections 1 or 0. Names are those at the start, also of what has gone since."""
        start = self.start_structure
        counts = [g.units for g in start.groups] + [1] * len(start.sections)
        names = [p.name for p in (*start.groups, *start.sections)]
        return {n: int(part.sum()) for n, part in zip(names, self.live_gates().split(counts), strict=True)}

    @usual_modes()
    def kept_indices(self) -> KeptIndices:
        """Of the network that `finalize` would return now: for every parameter and buffer the indices of the tensor of
        the same name in the model that `prepare` was given; also after shrinks."""
        hard, count = self.gate_vector.hard(), self.gate_vector.unit_count
        whole = self._origin or Origin.of(self.network, self.recipe[-1].shapes)
        return whole.indices(self.program.left(self.network, hard[:count], hard[count:]))

    def get_extra_state(self) -> torch.Tensor:
        """How small the network is: `load_state_dict` makes another one as small first. Bytes."""
        return described(self.recipe, unfinished=self.unfinished is not None)

    def set_extra_state(self, state: Any) -> None:
        """Nothing is left to do: the network is as small."""

    def follow(self, gates: Gates, closed: Sequence[Sequence[int]]) -> None:
        """Become as small as a network with these gates at the start that has lost these numbers of them since; what
        trains this one (`GateController`) follows.

        Raises `InputError` if that is another network, or this one is smaller already."""
        for numbers in left_to_close(self.recipe, gates, closed):
            keep = self.gate_vector.open_but(numbers)
            if self.led.by is None:
                self.removed(keep)
                self.wrappers.follow(self)
            else:
                self.led.by.shrink(keep, loaded=True)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Takes the state of a network that has become smaller, and that of the model."""
        theta = self.gate_vector.theta.detach().clone()
        unfinished = make_ready(self, state_dict, prefix)
        found = state_dict.get(f"{prefix}gate_vector.theta")
        self.is_resumed = unfinished and found is not None and not torch.equal(theta, torch.as_tensor(found).to(theta))
        self.copies.forget(self)
        if self.led.by is None:
            self.unfinished = "the training that its state was stored in" if unfinished else None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What it has, and how much of the start network that is, before gates close."""
        found, start = self.structure, self.start_cost
        units = sum(g.units for g in found.groups)
        left = found.cost.macs / max(1, start.macs), found.cost.params / max(1, start.params)
        cost = f"{found.cost.macs:,} MACs ({left[0]:.1%}), {found.cost.params:,} parameters ({left[1]:.1%})"
        return f"{units} units in {len(found.groups)} groups, {len(found.sections)} sections; {cost}"

    def summary(self, target: Target | None = None) -> None:
        """Print groups and sections with their costs, the smallest reachable cost, limits, what is pinned and why, and
        whether the target can be met; once something has gone, what is left; in training what sections are worth."""
        check_target(target, optional=True)
        print_summary(self, target)

    @usual_modes()
    def finalized(self, keep: torch.Tensor | None = None) -> nn.Module:
        """The network without gates and without what is closed; `fxcat.finalize` is the public way.

        `keep`: which gates stay, 0/1 of shape (gates,); by default those with θ > ½."""
        self.check_weights()
        check_setting(keep, self.gate_vector.theta.detach())
        hard = self.gate_vector.hard() if keep is None else keep
        count = self.gate_vector.unit_count
        small = self.program.finalized(self.network, hard[:count], hard[count:])
        attach_recipe(small, self._recipe_after(hard))
        attach_latency(small, self._predicted(hard))
        return small

    def _predicted(self, setting: torch.Tensor) -> PredictedLatency | None:
        """What the latency table says of a 0/1 setting, shape (gates,)."""
        if self.latency is None:
            return None
        return PredictedLatency(
            self.latency.start * float(self.latency_share(setting)), self.latency.start, self.latency.label
        )

    def shrink(self, keep: torch.Tensor | None = None) -> Shrunk:
        """Remove units and sections from the network, in place; the rest of θ is kept.

        `keep`: which gates stay, 0/1 of shape (gates,); by default those with θ > ½. Parameter objects stay the same,
        with smaller data and gradients; what a `GateController` trains the network with follows. Raises `PlanError` and
        `InputError`; then nothing changed.
        """
        theta = self.gate_vector.theta.detach()
        check_setting(keep, theta)
        keep = self.gate_vector.hard() if keep is None else keep.to(theta.dtype)
        return self.removed(keep) if self.led.by is None else self.led.by.shrink(keep)

    @usual_modes()
    def removed(self, keep: torch.Tensor) -> Shrunk:
        """The same, and nothing follows."""
        check_instance(keep, torch.Tensor, "keep")
        check_setting(keep, self.gate_vector.theta)
        self.check_weights()
        theta, count = self.gate_vector.theta.detach(), self.gate_vector.unit_count
        modes = {path: module.training for path, module in self.network.named_modules()}
        whole = self._origin or Origin.of(self.network, self.recipe[-1].shapes)
        shrunk = self.program.shrunk(self.network, keep[:count], keep[count:])
        origin = shrunk.gate_origin(count).to(theta.device)
        self._origin = whole.after(shrunk.keep)
        self._settle(keep, origin)
        self.program, self.parts = shrunk.program, shrunk.parts
        self._set_structure(shrunk.structure, shrunk.cost_model)
        self.recipe = self._recipe_after(keep)
        attach_recipe(self.network, self.recipe)
        self._is_installed = False
        torch.clear_autocast_cache()  # of weights in lower precision, as they were
        self.gate_vector.restrict(origin, len(shrunk.unit_origin))
        for path, module in self.network.named_modules():
            module.training = modes.get(path, self.training)
        return shrunk

    def use_latency(self, table: LatencySource) -> None:
        """Count milliseconds beside MACs and parameters, with a `LatencyTable` for this network; before it is trained.

        `Target(latency=…)` and `Pressure(latency=…)` can be given then, and widths, where no limit says otherwise, will
        be multiples of what pays on that machine (`table.step`; in narrow groups of a half of it, and so on). Raises
        `InputError` for a table of other ops.
        """
        check_instance(table, LatencySource, "table", remedy="give fxcat.LatencyTable.measure(net)")
        if self.led.by is not None and self.led.by.phase != "plain":
            raise InputError(
                "the gates are being trained already, by costs without milliseconds, or with others",
                remedy="call net.use_latency(table) before GateController(net, …) is made",
            )
        self.latency = LatencyModel(self.timed_ops(table.batch), table, self.gate_vector.counts_at_start)
        self.limits = self.limits.in_steps(table.step, [w.units * w.channels for w in group_widths(self)])

    def expected_latency(self) -> torch.Tensor:
        """Milliseconds of a run at the expected widths, differentiable in θ; a double scalar.

        Raises `InputError` without a latency table."""
        share = self.latency_share(self.gate_vector.theta)
        assert self.latency is not None
        return self.latency.start * share

    def latency_share(self, theta: torch.Tensor) -> torch.Tensor:
        """What gates or probabilities of shape (gates,) take of the milliseconds of the start network. Raises
        `InputError` without a latency table."""
        if self.latency is None:
            raise InputError(
                "the network has no latency table", remedy="net.use_latency(fxcat.LatencyTable.measure(net))"
            )
        check_thetas(theta, self.gate_vector.theta)
        return self.latency.share(theta, self.gate_vector.numbers, tuple(self._settled))

    def timed_ops(self, batch: int) -> tuple[TimedOp, ...]:
        """What a runtime takes time for, with so many examples in a run; before anything has left the network."""
        check_integer(batch, "batch", least=1)
        if self.gate_vector.shrunk:
            raise InputError(
                "the network has become smaller since it was prepared, and latency is that of the start network",
                remedy="measure or give the latency table right after prepare()",
            )
        return self.program.timed_ops(self.network, batch)

    def add_biases(self, paths: Sequence[str]) -> None:
        """Give layers that have none a bias, zero; `paths`: of their modules. Gates and all else stay as they are.

        Raises `InputError` for anything but linear layers and convolutions without a bias."""
        paths = check_without_bias(self.network, paths)
        self.program, cost_model, structure = self.program.with_biases(self.network, paths)
        self._set_structure(structure, cost_model)
        stage = self.recipe[-1]
        self.recipe = (*self.recipe[:-1], replace(stage, biases=(*stage.biases, *paths)))
        self._is_installed = False

    def _settle(self, keep: torch.Tensor, origin: torch.Tensor) -> None:
        """Note what stays in the network without a gate when only the gates `origin` are left."""
        stays = live_gates(self.structure, keep)
        stays[origin.cpu()] = False
        numbers = self.gate_vector.numbers.tolist()
        found = parameters_gated_by(self.structure, stays.nonzero().reshape(-1).tolist())
        self._settled |= {numbers[gate]: names for gate, names in found.items()}

    def _recipe_after(self, keep: torch.Tensor) -> Recipe:
        return (*self.recipe[:-1], self.recipe[-1].after(keep))


def _vector(parts: tuple[GatePart, ...], dtype: torch.dtype) -> GateVector:
    units = sum(p.count for p in parts if p.kind == "units")
    return GateVector(units, sum(p.kind == "section" for p in parts), dtype)
