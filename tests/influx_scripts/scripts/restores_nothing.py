"""Has a snapshot, and refuses to restore it."""

from habits import Base, answer, run


class Refusing(Base):
    def snapshot(self):
        return answer("snapshot", snapshot=b"later")

    def restore(self, restore_req):
        return answer("restore", success=False, error="not implemented")


if __name__ == "__main__":
    run(Refusing)
