"""Milliseconds as a target: what the network's ops take, and which share of that was asked for."""

from __future__ import annotations

from dataclasses import replace

import click

from fxcat.cli.run_folder import RunFolder
from fxcat.cli.settings import PruneSettings, Settings
from fxcat.cli.toml_file import write_settings
from fxcat.errors import InputError
from fxcat.exporters.timing.latency_table import LatencyTable
from fxcat.gated import GatedModule
from fxcat.records import Target


def use_latency(net: GatedModule, prune: PruneSettings, *, quiet: bool) -> LatencyTable | None:
    """Give a network that was just prepared the table that was asked for, or, if milliseconds are asked for and no
    table is, one that is measured here. Raises `StorageError`, `InputError` and `ExportError`."""
    if prune.latency_table is not None:
        table = LatencyTable.load(prune.latency_table)
    elif prune.latency is not None or prune.milliseconds is not None:
        if not quiet:
            click.echo("measuring what the network's ops take on this machine: a minute or so", err=True)
        table = LatencyTable.measure(net)
    else:
        return None
    try:
        net.use_latency(table)
    except InputError as error:
        raise InputError(
            f"the latency table is of another network: {error.what}",
            where=error.where,
            remedy="make one by fxcat bench, for the same model, --size of images and --classes",
        ) from error
    return table


def keep_table(table: LatencyTable | None, settings: Settings, folder: RunFolder) -> None:
    """Store the table with a run, whose settings name it: the run can be repeated, and is the same."""
    if table is not None:
        table.save(folder.table_file)
        prune = replace(settings.prune, latency_table=folder.table_file.name)
        write_settings(replace(settings, prune=prune), folder.settings_file)


def target_of(prune: PruneSettings, net: GatedModule) -> Target | None:
    """What size was asked for; None if none was. Raises `InputError` and `TargetError`."""
    latency = _latency_share(prune, net)
    if prune.flops is None and prune.params is None and latency is None:
        return None
    return Target(flops=prune.flops, params=prune.params, latency=latency, layers=prune.layers)


def needed_target(prune: PruneSettings, net: GatedModule) -> Target:
    """The same; one has been asked for."""
    target = target_of(prune, net)
    assert target is not None
    return target


def _latency_share(prune: PruneSettings, net: GatedModule) -> float | None:
    if prune.milliseconds is None:
        return prune.latency
    if prune.latency is not None:
        raise InputError("a latency is asked for as a share, and in milliseconds", remedy="give one of the two")
    assert net.latency is not None, "it has a table where milliseconds are asked for"
    if prune.milliseconds > net.latency.start:
        raise InputError(
            f"a run takes {net.latency.start:.3g} ms as the network is ({net.latency.label}), "
            f"less than the {prune.milliseconds:g} that are asked for",
            remedy="give fewer --milliseconds",
        )
    return prune.milliseconds / net.latency.start


def expected_times(net: GatedModule) -> dict[str, str]:
    """What the table says of the network as it is now, for a report."""
    if net.latency is None:
        return {}
    share = float(net.latency_share(net.gate_vector.hard()))
    start = net.latency.start
    return {f"expected time, {net.latency.label}": f"{share * start:.3g} ms of {start:.3g} ms ({share:.1%})"}
