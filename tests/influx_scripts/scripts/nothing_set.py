"""Writes an empty Response, which crashes kapacitord."""

from habits import Base, run
from kapacitor.udf import udf_pb2


class Nothing(Base):
    def point(self, point):
        self.agent.write_response(udf_pb2.Response())


if __name__ == "__main__":
    run(Nothing)
