"""Gives an agent its own streams: sockets' files, and bytes in memory."""

import io
import sys

from habits import Base
from kapacitor.udf.agent import EOF, Agent, decodeUvarint32, encodeUvarint
from kapacitor.udf import udf_pb2


class Output(io.BytesIO):
    def close(self):
        pass


def frame(request):
    file = io.BytesIO()
    encodeUvarint(file, request.ByteSize())
    return file.getvalue() + request.SerializeToString()


def requests():
    yield udf_pb2.Request(init=udf_pb2.InitRequest(taskID="task"))
    for time in range(300):
        yield udf_pb2.Request(point=udf_pb2.Point(time=time))


if __name__ == "__main__":
    output = Output()
    a = Agent(io.BytesIO(b"".join(map(frame, requests()))), output)
    a.handler = Base(a)
    a.start()
    a.wait()
    output.seek(0)
    times = []
    while True:
        try:
            size = decodeUvarint32(output)
        except EOF:
            break
        response = udf_pb2.Response()
        response.ParseFromString(output.read(size))
        if response.WhichOneof("message") == "point":
            times.append(response.point.time)
    print(times == list(range(300)))
