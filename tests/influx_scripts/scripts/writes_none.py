"""Writes None."""

from habits import Base, run


class Writing(Base):
    def point(self, point):
        self.agent.write_response(None)


if __name__ == "__main__":
    run(Writing)
