"""Has the text of json.dumps as its snapshot."""

import json

from habits import Base, answer, run


class Counting(Base):
    count = 0

    def snapshot(self):
        return answer("snapshot", snapshot=json.dumps({"count": self.count, "unit": "µs"}))

    def restore(self, restore_req):
        self.count = json.loads(restore_req.snapshot)["count"]
        return answer("restore", success=True)

    def point(self, point):
        self.count += 1
        point.fieldsInt["count"] = self.count
        super().point(point)


if __name__ == "__main__":
    run(Counting)
