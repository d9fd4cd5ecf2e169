"""Sets the handler after the start; the handler has no agent argument and no base class."""

from habits import answer
from kapacitor.udf import udf_pb2
from kapacitor.udf.agent import Agent


class Mirror:
    def info(self):
        return answer("info", wants=udf_pb2.STREAM, provides=udf_pb2.STREAM)

    def init(self, init_req):
        return answer("init", success=True)

    def point(self, point):
        response = udf_pb2.Response()
        response.point.CopyFrom(point)
        self.agent.write_response(response)


if __name__ == "__main__":
    agent = Agent()
    agent.start()
    handler = Mirror()
    handler.agent = agent
    agent.handler = handler
    agent.wait()
