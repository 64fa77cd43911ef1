"""Whole servers and clients over the real SQL, stepped one at a time by a seeded choice.

``stage`` takes turns between fibers and holds the clock; ``net`` is the database as they see it,
faults included; ``cast`` is who acts: servers made of the package's own services, and clients;
``audit`` is the evidence, taken down by triggers, and what must be true of it; ``drama`` is one
seed from its beginning to its end.
"""
