"""Writes from a thread of its own, which gets the points over a queue."""

import queue
import threading

from habits import Base, run


class Threaded(Base):
    def __init__(self, agent):
        super().__init__(agent)
        self.queue = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            super().point(self.queue.get())
            self.queue.task_done()

    def point(self, point):
        self.queue.put(point)

    def end_batch(self, end_req):
        self.queue.join()

    def snapshot(self):
        self.queue.join()
        return super().snapshot()


if __name__ == "__main__":
    run(Threaded)
