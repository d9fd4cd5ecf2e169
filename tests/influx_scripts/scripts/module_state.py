"""Keeps its state in a module variable, and pickles objects of its own class."""

import pickle

from habits import Base, answer, run

history = []


class Entry:
    def __init__(self, time):
        self.time = time


class Remembering(Base):
    def snapshot(self):
        return answer("snapshot", snapshot=pickle.dumps(history))

    def restore(self, restore_req):
        history.extend(pickle.loads(restore_req.snapshot))
        return answer("restore", success=True)

    def point(self, point):
        history.append(Entry(point.time))
        point.fieldsInt["seen"] = len(history)
        super().point(point)


if __name__ == "__main__":
    run(Remembering)
