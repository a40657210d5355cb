"""Record trajectories.

Plans of a round's trajectories, the recorder of one batch, all rounds of a run, their files, and
the joining of shards that several machines recorded.
"""

from guidefold.record.gather import gather
from guidefold.record.plans import Plan
from guidefold.record.recorder import Recorder
from guidefold.record.rounds import (
    fill_round,
    record,
    record_rounds,
    recorded_states,
    recorder_for,
    something_missing,
)
from guidefold.record.trajectory_files import KeptState, Split, StateRef, write_trajectory

__all__ = [
    "KeptState",
    "Plan",
    "Recorder",
    "Split",
    "StateRef",
    "fill_round",
    "gather",
    "record",
    "record_rounds",
    "recorded_states",
    "recorder_for",
    "something_missing",
    "write_trajectory",
]
