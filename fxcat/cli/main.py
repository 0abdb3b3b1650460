"""The command: its parts, exit codes, and how mistakes are told."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from typing import Any

import click

from fxcat.cli.benching import bench
from fxcat.cli.commands import inspect, prune, train
from fxcat.cli.results import export, report
from fxcat.errors import FxcatError
from fxcat.version import __version__

MISTAKE, USAGE, FAULT, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: an `FxcatError`; a command that is not understood (click's own); a fault of fxcat; Ctrl-C."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": False, "max_content_width": 110})
@click.version_option(__version__, prog_name="fxcat")
@click.option("--debug", is_flag=True, help="Show where in the code an error arises.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Make PyTorch vision models smaller.

    Exit codes: 0 all went well, 1 a mistake that the message explains, 2 an option that does not exist, 3 a fault of
    fxcat itself, 130 interrupted.
    """
    ctx.obj = debug


for _command in (inspect, prune, train, export, bench, report):
    cli.add_command(_command)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and names of models.

    For example: fxcat completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "fxcat", "_FXCAT_COMPLETE").source())


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    sys.path.insert(0, os.getcwd())  # package.module:function may lie here
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    logging.basicConfig(level=logging.WARNING, format="fxcat: %(message)s")
    warnings.showwarning = _warn
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of a terminal that does not know all letters
    try:
        code = cli.main(args=given, prog_name="fxcat", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; a training goes on with --resume", err=True)
        return INTERRUPTED
    except FxcatError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"fxcat: {error}", err=True)
        return MISTAKE
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(f"fxcat: a fault of fxcat, or of what it calls: {type(error).__name__}: {error}", err=True)
        click.echo("  what to do: fxcat --debug … shows where it arises; please report it", err=True)
        return FAULT


def _warn(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """Warnings as a line; those for people who write code are not for who runs a command."""
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
        click.echo(f"fxcat: {message}", err=True)


def run() -> None:
    """The console script."""
    sys.exit(main())
