"""The paper's claims, measured: memory, speed and fidelity, a room each."""
