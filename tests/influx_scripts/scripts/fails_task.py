"""Writes an error itself."""

from habits import Base, answer, run


class Failing(Base):
    def point(self, point):
        self.agent.write_response(answer("error", error="too hot"), flush=True)


if __name__ == "__main__":
    run(Failing)
