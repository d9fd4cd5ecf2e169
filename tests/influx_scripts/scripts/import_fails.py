"""Imports a package that is not installed."""

import no_such_package
from kapacitor.udf.agent import Agent
