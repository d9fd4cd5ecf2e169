"""Keeps the points of a batch, changes them, and writes them at its end."""

from habits import Base, run
from kapacitor.udf import udf_pb2


class Keeping(Base):
    wants = udf_pb2.BATCH

    def begin_batch(self, begin_req):
        self.points = []

    def point(self, point):
        point.fieldsDouble["value"] += 1
        self.points.append(point)

    def end_batch(self, end_req):
        response = udf_pb2.Response()
        for point in sorted(self.points, key=lambda point: -point.time):
            response.point.CopyFrom(point)
            self.agent.write_response(response)


if __name__ == "__main__":
    run(Keeping)
