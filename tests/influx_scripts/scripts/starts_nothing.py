"""Defines a handler, and starts no agent."""

from habits import Base
from kapacitor.udf.agent import Handler


class Idle(Base):
    pass
