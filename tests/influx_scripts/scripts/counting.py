"""Adds a running count to each point, and keeps it in a snapshot of JSON."""

import json
import logging
import os

from kapacitor.udf.agent import Agent, Handler
from kapacitor.udf import udf_pb2

logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s:%(name)s: %(message)s")
logger = logging.getLogger()


class CountHandler(Handler):
    class state(object):
        def __init__(self):
            self.count = 0

    def __init__(self, agent):
        self._agent = agent
        self._as = "count"
        self._states = {}

    def info(self):
        response = udf_pb2.Response()
        response.info.wants = udf_pb2.STREAM
        response.info.provides = udf_pb2.STREAM
        response.info.options["as"].valueTypes.append(udf_pb2.STRING)
        return response

    def init(self, init_req):
        success = True
        msg = ""
        for opt in init_req.options:
            if opt.name == "as":
                self._as = opt.values[0].stringValue
        if self._as == "":
            success = False
            msg += " invalid as name"
        response = udf_pb2.Response()
        response.init.success = success
        response.init.error = msg[1:]
        return response

    def snapshot(self):
        data = {group: state.count for group, state in self._states.items()}
        if "RECORD" in os.environ:
            with open(os.environ["RECORD"], "a") as record:
                record.write("%d\n" % sum(data.values()))
        response = udf_pb2.Response()
        response.snapshot.snapshot = json.dumps(data).encode()
        return response

    def restore(self, restore_req):
        response = udf_pb2.Response()
        try:
            for group, count in json.loads(restore_req.snapshot.decode()).items():
                self._states[group] = CountHandler.state()
                self._states[group].count = count
            response.restore.success = True
        except Exception as e:
            response.restore.success = False
            response.restore.error = str(e)
        return response

    def begin_batch(self, begin_req):
        raise Exception("not supported")

    def point(self, point):
        state = self._states.setdefault(point.group, CountHandler.state())
        state.count += 1
        response = udf_pb2.Response()
        response.point.CopyFrom(point)
        response.point.ClearField("fieldsString")
        response.point.fieldsInt[self._as] = state.count
        self._agent.write_response(response)

    def end_batch(self, end_req):
        raise Exception("not supported")


if __name__ == "__main__":
    a = Agent()
    h = CountHandler(a)
    a.handler = h

    logger.info("Starting Agent")
    a.start()
    a.wait()
    logger.info("Agent finished")
