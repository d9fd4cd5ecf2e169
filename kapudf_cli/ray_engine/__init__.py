"""Partitions as actors of a Ray cluster.

A worker starts one process of this package, `main`. It connects to the cluster, creates an actor
for each partition, and passes orders of the worker on to the actors, and their replies back:

    worker ── links: one of each connection and partition ── Ray engine ══ cluster ══ actor 0
                                                                                   ══ actor 1

If an actor is lost, the engine ends, and its worker with it. Another worker takes the connections
over, and its engine creates other actors, where there is room.
"""
