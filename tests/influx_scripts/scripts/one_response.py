"""Uses one Response for all that it writes, and changes it after each write."""

from habits import Base, run
from kapacitor.udf import udf_pb2


class Doubling(Base):
    wants = provides = udf_pb2.BATCH

    def begin_batch(self, begin_req):
        self.response = udf_pb2.Response()
        self.response.begin.CopyFrom(begin_req)
        self.response.begin.size = 0
        self.agent.write_response(self.response)

    def point(self, point):
        self.response.point.CopyFrom(point)
        self.response.point.fieldsDouble["value"] *= 2
        self.agent.write_response(self.response)
        self.response.point.fieldsDouble["value"] = -1

    def end_batch(self, end_req):
        self.response.end.CopyFrom(end_req)
        self.agent.write_response(self.response, flush=True)
        self.response.Clear()


if __name__ == "__main__":
    run(Doubling)
