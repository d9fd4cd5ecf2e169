"""Returns its snapshot as a str."""

from habits import Base, run


class Textual(Base):
    def snapshot(self):
        return "state"


if __name__ == "__main__":
    run(Textual)
