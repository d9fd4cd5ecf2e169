"""Raises at a point."""

from habits import Base, run


class Raising(Base):
    def point(self, point):
        raise ValueError("value %s is bad" % point.fieldsDouble["value"])


if __name__ == "__main__":
    run(Raising)
