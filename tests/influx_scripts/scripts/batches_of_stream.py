"""Declares a stream, and writes batches; begins one before it has ended the last."""

from habits import Base, answer, run
from kapacitor.udf import udf_pb2


class Batching(Base):
    def point(self, point):
        self.agent.write_response(answer("begin", name=point.name, size=9))
        self.agent.write_response(answer("begin", name=point.name, size=1))
        super().point(point)
        self.agent.write_response(answer("end", name=point.name, tmax=point.time))


if __name__ == "__main__":
    run(Batching)
