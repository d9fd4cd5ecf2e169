"""Has '' as its snapshot, and cannot restore one."""

from habits import Base, answer, run


class NoState(Base):
    def snapshot(self):
        return answer("snapshot", snapshot="")

    def restore(self, restore_req):
        return answer("restore", success=False, error="not implemented")


if __name__ == "__main__":
    run(NoState)
