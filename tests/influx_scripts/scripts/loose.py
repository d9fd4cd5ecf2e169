"""Has a static info, methods without their arguments, and methods that return something."""

from habits import Base, answer, run
from kapacitor.udf import udf_pb2


class Loose(Base):
    @staticmethod
    def info():
        return answer("info", wants=udf_pb2.STREAM, provides=udf_pb2.STREAM)

    def begin_batch(self):
        raise Exception("not supported")

    def point(self, point):
        super().point(point)
        return point.time


if __name__ == "__main__":
    run(Loose)
