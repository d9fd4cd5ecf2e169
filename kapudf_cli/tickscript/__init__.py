"""The part of TICKscript that concerns UDFs: their names, their options and calls of them."""
