"""Has a snapshot that returns nothing."""

from habits import Base, run


class Silent(Base):
    def snapshot(self):
        pass


if __name__ == "__main__":
    run(Silent)
