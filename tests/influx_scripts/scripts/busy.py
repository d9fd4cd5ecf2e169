"""Needs long for a point."""

import time

from habits import Base, run


class Busy(Base):
    def point(self, point):
        time.sleep(point.fieldsDouble["seconds"])
        super().point(point)


if __name__ == "__main__":
    run(Busy)
