"""Assigns values of other types than those of the fields, and uses maps like dictionaries."""

import numpy as np
from habits import Base, run
from kapacitor.udf.udf_pb2 import Point, Response


class Values(Base):
    def point(self, point):
        new = Point()
        new.time = np.int64(point.time)
        new.name = point.name.encode()
        new.tags.update(point.tags)
        new.fieldsDouble["int"] = 1
        new.fieldsDouble["float32"] = np.float32(0.5)
        new.fieldsDouble.update({name: value for name, value in point.fieldsDouble.items()})
        new.fieldsInt["int32"] = np.int32(7)
        new.fieldsBool["bool"] = np.bool_(True)
        new.fieldsString["bytes"] = b"text"
        new.fieldsString["missing"] = str(point.fieldsString.get("no such field"))
        copy = Point()
        copy.ParseFromString(new.SerializeToString())
        response = Response()
        response.point.CopyFrom(copy)
        response.point.ClearField("group")
        self.agent.write_response(response)


if __name__ == "__main__":
    run(Values)
