"""Shorter ways from request bytes to reply bytes for the common case; anything unusual takes the plain one.

Nothing here knows how a record looks: templates are taken from a record that the plain path made, and only the parts
that differ from request to request (time, inputs, outputs, elapsed) are put in their places. Which places those are is
seen from the memory they lie in. So a change of the record changes the fast replies with it.
"""
