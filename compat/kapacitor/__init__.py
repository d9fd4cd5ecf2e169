"""InfluxData's Python agent for Kapacitor UDFs, in the form that kapudf provides.

`kapacitor.udf` is in this folder. Other packages of the name may be elsewhere on the path.
"""

__path__ = __import__("pkgutil").extend_path(__path__, __name__)
