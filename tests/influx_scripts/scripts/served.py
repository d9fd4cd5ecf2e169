"""Mirrors points at a socket whose permissions it sets."""

import logging
import os
import sys

from kapacitor.udf import udf_pb2
from kapacitor.udf.agent import Agent, Handler, Server

logging.basicConfig(level=logging.INFO)
logger = logging.getLogger()


class MirrorHandler(Handler):
    def __init__(self, agent):
        self._agent = agent

    def info(self):
        response = udf_pb2.Response()
        response.info.wants = udf_pb2.STREAM
        response.info.provides = udf_pb2.STREAM
        return response

    def init(self, init_req):
        response = udf_pb2.Response()
        response.init.success = True
        return response

    def snapshot(self):
        response = udf_pb2.Response()
        response.snapshot.snapshot = ""
        return response

    def restore(self, restore_req):
        response = udf_pb2.Response()
        response.restore.success = False
        response.restore.error = "not implemented"
        return response

    def point(self, point):
        response = udf_pb2.Response()
        response.point.CopyFrom(point)
        self._agent.write_response(response, True)


class accepter(object):
    _count = 0

    def accept(self, conn, addr):
        self._count += 1
        count = self._count
        a = Agent(conn, conn)
        a.handler = MirrorHandler(a)
        logger.info("Starting Agent for connection %d", count)
        a.start()
        a.wait()
        logger.info("Agent finished connection %d", count)


if __name__ == "__main__":
    path = "/tmp/kapudf-test-served.sock"
    if len(sys.argv) == 2:
        path = sys.argv[1]
    if os.path.exists(path) and os.environ.get("REMOVES"):
        os.remove(path)
    server = Server(path, accepter())
    os.chmod(path, 0o777)
    logger.info("Started server")
    server.serve()
    logger.info("Server stopped")
