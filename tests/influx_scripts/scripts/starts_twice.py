"""Starts an agent a second time."""

from habits import Base
from kapacitor.udf.agent import Agent

if __name__ == "__main__":
    a = Agent()
    a.handler = Base(a)
    a.start()
    a.start()
