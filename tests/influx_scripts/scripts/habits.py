"""What the scripts beside this one share, besides their one habit."""

from kapacitor.udf import udf_pb2
from kapacitor.udf.agent import Agent, Handler


def answer(kind, **values):
    response = udf_pb2.Response()
    getattr(response, kind).SetInParent()
    for name, value in values.items():
        setattr(getattr(response, kind), name, value)
    return response


class Base(Handler):
    wants = provides = udf_pb2.STREAM

    def __init__(self, agent):
        self.agent = agent

    def info(self):
        return answer("info", wants=self.wants, provides=self.provides)

    def init(self, init_req):
        return answer("init", success=True)

    def snapshot(self):
        return answer("snapshot", snapshot=b"")

    def restore(self, restore_req):
        return answer("restore", success=True)

    def begin_batch(self, begin_req):
        pass

    def end_batch(self, end_req):
        pass

    def point(self, point):
        response = udf_pb2.Response()
        response.point.CopyFrom(point)
        self.agent.write_response(response)


def run(handler):
    a = Agent()
    a.handler = handler(a)
    a.start()
    a.wait()
