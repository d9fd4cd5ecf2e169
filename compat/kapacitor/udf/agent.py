"""The names of InfluxData's `kapacitor.udf.agent`, implemented by kapudf."""

from kapacitor.udf import udf_pb2
from kapudf_cli.influx_process import Agent, Server
from kapudf_cli.influx_scripts.interface import (
    EOF,
    Handler,
    byteSize,
    decodeUvarint32,
    defaultIn,
    defaultOut,
    encodeUvarint,
    logger,
    mask32uint,
    shiftSize,
    varintMask,
    varintMoreMask,
)

__all__ = [
    "EOF",
    "Agent",
    "Handler",
    "Server",
    "byteSize",
    "decodeUvarint32",
    "defaultIn",
    "defaultOut",
    "encodeUvarint",
    "logger",
    "mask32uint",
    "shiftSize",
    "udf_pb2",
    "varintMask",
    "varintMoreMask",
]
