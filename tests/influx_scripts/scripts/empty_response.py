"""Answers a snapshot request with an empty Response."""

from habits import Base, run
from kapacitor.udf import udf_pb2


class Empty(Base):
    def snapshot(self):
        return udf_pb2.Response()


if __name__ == "__main__":
    run(Empty)
