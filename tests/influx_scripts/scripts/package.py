"""Imports the agent from a folder of another name, which it adds to the path."""

import sys

sys.path.append("../lib")

import udf.udf_pb2 as udf_pb2
from habits import Base, run
from udf.agent import Agent, Handler

assert issubclass(Base, Handler)


class Mirror(Base):
    provides = udf_pb2.STREAM


if __name__ == "__main__":
    run(Mirror)
