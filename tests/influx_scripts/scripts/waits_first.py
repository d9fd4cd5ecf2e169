"""Waits for an agent that it has not started."""

from habits import Base
from kapacitor.udf.agent import Agent

if __name__ == "__main__":
    a = Agent()
    a.handler = Base(a)
    a.wait()
    a.start()
