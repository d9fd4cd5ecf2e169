"""The messages of kapudf under the names of InfluxData's `udf_pb2`."""

import kapudf_cli.influx_scripts.leniency  # noqa: F401 - has snapshots accept text
from kapudf_cli.protocol.udf_pb2 import *  # noqa: F403
