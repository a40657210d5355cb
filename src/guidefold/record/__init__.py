"""Recording: which trajectories a round holds, how they are recorded, and the files they lie in.

A round is a function of the settings; its pipeline is driven along states, then followed there.
"""
