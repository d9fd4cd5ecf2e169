"""Answers a snapshot request with the answer to a restore, and restores without argument."""

from habits import Base, answer, run


class Mistaken(Base):
    def snapshot(self):
        return answer("restore", success=False, error="not implemented")

    def restore(self):
        return answer("restore", success=True)


if __name__ == "__main__":
    run(Mistaken)
