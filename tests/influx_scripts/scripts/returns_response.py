"""Returns a Response from point instead of writing it."""

from habits import Base, run
from kapacitor.udf.udf_pb2 import Response


class Returning(Base):
    def point(self, point):
        response = Response()
        response.point.CopyFrom(point)
        return response


if __name__ == "__main__":
    run(Returning)
