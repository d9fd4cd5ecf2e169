"""`kapudf completion`: print the script with which a shell completes kapudf's command line."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kapudf_cli.commands.output import say_styled

_VARIABLE = "_KAPUDF_COMPLETE"


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script with which a shell completes commands, options and their values.

    In ~/.bashrc or ~/.zshrc:

    \b
        eval "$(kapudf completion bash)"
        eval "$(kapudf completion zsh)"

    and for fish, once:

    \b
        kapudf completion fish > ~/.config/fish/completions/kapudf.fish
    """  # noqa: D301 - click reads the backspaces
    from kapudf_cli.commands import main

    found = get_completion_class(shell)
    assert found is not None, "click has all of these"
    say_styled([found(main, {}, "kapudf", _VARIABLE).source()])
