"""TICKscript, as far as it speaks of UDFs: their names, their options, and how they are called."""
