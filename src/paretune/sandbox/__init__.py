"""Small worlds with exact rewards, made and trained offline: where methods are shown and claims are tested."""

from paretune.sandbox.safety import SAFETY
from paretune.sandbox.summaries import SUMMARIES
from paretune.sandbox.world import World

WORLDS: dict[str, World] = {world.name: world for world in (SUMMARIES, SAFETY)}
