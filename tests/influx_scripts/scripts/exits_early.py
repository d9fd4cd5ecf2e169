"""Exits because an option is missing."""

import sys

from kapacitor.udf.agent import Agent

if len(sys.argv) != 2:
    sys.exit("usage: exits_early.py MODEL")
Agent().start()
