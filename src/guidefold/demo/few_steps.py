"""The demo's second run: a student of five steps, beside the guidance LoRA of the first run."""

from __future__ import annotations

from guidefold.run import Settings

STEPS = 5
# Of the first run's trajectories, training steps and pictures: a steps LoRA alone is learnt sooner.
TRAJECTORIES, UPDATES, PICTURES = 0.4, 0.4, 0.5


def with_fewer_steps(settings: Settings) -> Settings:
    """The settings of the demo's second run.

    Args:
        settings: The first run's, whose adapter is finished.
    """
    record, distill, evaluate = settings.record, settings.distill, settings.evaluate
    return settings.model_copy(
        update={
            "run": f"{settings.run}-{STEPS}-steps",
            "student": settings.student.model_copy(
                update={"steps": STEPS, "guidance_run": settings.run}
            ),
            "record": record.model_copy(
                update={
                    "trajectories": max(1, round(TRAJECTORIES * record.trajectories)),
                    "guidance": (1.0, record.guidance[1]),  # from where guidance is off on
                }
            ),
            "distill": distill.model_copy(
                update={
                    "steps": max(1, round(UPDATES * distill.steps)),
                    "preview_prompts": 0,
                }
            ),
            "evaluate": evaluate.model_copy(
                update={"prompts": max(1, round(PICTURES * evaluate.prompts))}
            ),
        }
    )
