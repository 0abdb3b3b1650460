"""How long ops and networks take on the machine at hand, in the runtime that will serve: `LatencyTable`."""
