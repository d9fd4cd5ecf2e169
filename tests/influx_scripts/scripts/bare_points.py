"""Declares batches, and writes points without a begin and an end."""

from habits import Base, run
from kapacitor.udf import udf_pb2


class Bare(Base):
    wants = provides = udf_pb2.BATCH

    def point(self, point):
        point.name = "cpu"
        super().point(point)


if __name__ == "__main__":
    run(Bare)
