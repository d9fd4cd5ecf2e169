"""Pictures of what a UDF did and of how fast it was: what is in them, and drawing them.

| module | content |
| --- | --- |
| `picture` | the content of a picture: panels with lines, marks and bars; no library is needed |
| `envelope` | a line in bounded memory, for any number of points |
| `changes` | the picture of a replay |
| `style` | the colours and sizes of all pictures |
| `drawing` | writing a picture to a file, by its ending |
| `chart` | SVG and PNG; needs matplotlib |
| `page` | a page with zoom and hover; needs bokeh |
"""
