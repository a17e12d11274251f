"""The command line: one subcommand per file, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from dit_accel.cli.deferred import defer
from dit_accel.extensions import command_names, load_command

defer("torch")

COMMANDS = {
    "render": "Turn prompts into videos.",
    "comfyui": "Install the nodes into a ComfyUI, or remove them.",
    "methods": "List the attention methods and their knobs.",
    "models": "List the model families.",
    "doctor": "Say what this machine can run.",
    "replay": "Render again from the settings kept in a file.",
}


class Commands(click.Group):
    """Subcommands by name; the table above is all that ``--help`` needs to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *command_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return load_command(cmd_name)
        return importlib.import_module(f"dit_accel.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            names = self.list_commands(ctx)
            commands = [(name, self.get_command(ctx, name)) for name in names]
            formatter.write_dl([(n, c.get_short_help_str(80)) for n, c in commands if c])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dit_accel")
@click.option("--traceback", is_flag=True, help="Show where an unexpected error comes from.")
def cli(traceback: bool) -> None:
    """Make diffusers' video and image diffusion transformers faster, and say honestly what it cost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit code 0 ok, 2 bad arguments, 1 failed. Errors are one line on
    standard error.
    """
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
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 1)
    except Exception as error:
        from dit_accel.errors import InvalidSettings, RunFailed

        if isinstance(error, InvalidSettings):
            return _fail(str(error), 2)
        if isinstance(error, RunFailed):
            return _fail(str(error), 1)
        if traceback_wanted(arguments):
            raise
        return _fail(f"{type(error).__name__}: {error} (--traceback shows where)", 1)


def traceback_wanted(arguments: Sequence[str] | None) -> bool:
    """Whether the command line asks where an unexpected error comes from."""
    return "--traceback" in (sys.argv if arguments is None else arguments)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
