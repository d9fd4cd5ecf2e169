"""Ends a batch that it has not begun, which crashes kapacitord."""

from habits import Base, answer, run


class Ending(Base):
    def point(self, point):
        self.agent.write_response(answer("end", name=point.name))


if __name__ == "__main__":
    run(Ending)
