"""`python -m kapudf_cli`, for where the console script is not on the path."""

from kapudf_cli.commands import run

run()
