"""Has a class of the name of its base class, from a module imported as a whole."""

import habits
import kapacitor.udf.udf_pb2 as udf_pb2
from habits import Base as Handler
from kapacitor.udf.agent import Agent


class Handler(Handler):
    def __init__(self, agent):
        super(Handler, self).__init__(agent)


if __name__ == "__main__":
    habits.run(Handler)
