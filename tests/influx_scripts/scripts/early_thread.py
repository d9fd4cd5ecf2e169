"""Writes from a thread before the agent is started, and never waits for the agent."""

import threading
import time

from habits import Base
from kapacitor.udf import udf_pb2
from kapacitor.udf.agent import Agent


class Ticking(Base):
    def __init__(self, agent):
        super().__init__(agent)
        self.thread = threading.Thread(target=self.tick, daemon=True)
        self.thread.start()

    def tick(self):
        response = udf_pb2.Response()
        response.point.name = "tick"
        self.agent.write_response(response, flush=True)

    def point(self, point):
        self.thread.join()
        super().point(point)


if __name__ == "__main__":
    a = Agent()
    a.handler = Ticking(a)
    time.sleep(0.05)
    a.start()
