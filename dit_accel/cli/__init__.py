"""Run the command line: each subcommand is a module of this package, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from dit_accel.cli.deferred import defer
from dit_accel.cli.messages import Messages
from dit_accel.errors import InvalidSettings, RunFailed
from dit_accel.extensions import command_names, load_command

COMMANDS = {
    "render": "Render prompts to videos or images.",
    "replay": "Render again from the settings kept in a file.",
    "methods": "List the attention methods, or explain one.",
    "models": "List the model families.",
    "doctor": "Check what this machine can run.",
    "ui": "Compare dense and accelerated in the browser.",
    "comfyui": "Install the ComfyUI nodes, or remove them.",
}


LONGEST_LINE = 600


class Commands(click.Group):
    """Subcommands by name: those of the table above, and those that other packages register."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *command_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command: click.Command | None
        if cmd_name in COMMANDS:
            command = importlib.import_module(f"dit_accel.cli.{cmd_name}").command
        else:
            command = load_command(cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items(), *((n, _help_of(n)) for n in command_names())])


def _help_of(name: str) -> str:
    """Return the short help of a registered command, or why it does not load."""
    try:
        command: click.Command = load_command(name)
    except RunFailed as error:
        return f"Unavailable: {error}"
    return command.get_short_help_str(80)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dit_accel")
@click.option("--traceback", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_context
def cli(context: click.Context, traceback: bool) -> None:
    """Make diffusers' video and image diffusion transformers faster, and report what it cost."""
    context.obj = context.with_resource(Messages())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 for success, 2 for bad arguments, 1 for a failure.

    An error is one line on standard error.
    """
    defer("torch")
    try:
        cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="dit-accel",
            standalone_mode=False,
        )
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except InvalidSettings as error:
        return _fail(str(error), 2)
    except RunFailed as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 1)
    except Exception as error:
        if "--traceback" in (sys.argv if arguments is None else arguments):
            raise
        return _fail(f"{type(error).__name__}: {error} (--traceback shows where)", 1)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # it quotes what was given
        line = f"{line[: LONGEST_LINE - 100]} ... {line[-95:]}"
    click.echo(f"error: {line}", err=True)
    return code
