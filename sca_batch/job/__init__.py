"""One captioning run: a request, one function, a dataset.

The plan is made once. A shard file under its final name is complete; the rows of a shard that was
interrupted stand in a hidden file beside it, from which it is resumed. There is no other memory.
"""
