"""Keys of where work is done, and the engine that they come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paretune.cli.keys import key
from paretune.errors import InputError

if TYPE_CHECKING:
    from paretune.pipelines.front.engine_ray import RayTasks

ENGINE_KEYS = ["engine", "ray_address", "task_cpus", "task_gpus"]


@dataclass
class EngineKeys:
    """Where work is done."""

    engine: str = key("local: this machine; ray: the machines of a Ray cluster (docs/front.md).", "local")
    ray_address: str | None = key("Of a running cluster: auto or HOST:PORT [one of this machine, for this command].")
    task_cpus: float = key("CPUs that one task takes on Ray.", 1.0)
    task_gpus: float | None = key("GPUs that one task takes on Ray [1 where the cluster has any].")

    def check_engine(self) -> None:
        """Raises InputError for values that do not go together."""
        if self.engine not in ("local", "ray"):
            raise InputError("bad engine", expected="local or ray", found=self.engine)
        for name, value, least in (("task_cpus", self.task_cpus, 0.001), ("task_gpus", self.task_gpus, 0.0)):
            if value is not None and not least <= value < float("inf"):
                raise InputError(f"bad {name}", expected=f"a number {'> 0' if least else '>= 0'}", found=value)
        given = [
            name for name in ENGINE_KEYS[1:] if getattr(self, name) != EngineKeys.__dataclass_fields__[name].default
        ]
        if self.engine == "local" and given:
            raise InputError(f"{given[0]} without Ray", fix="Add --engine ray, or leave it out.")

    def ray_tasks(self, folder: Path | None = None, limit: int | None = None) -> RayTasks:
        """The engine, connected."""
        from paretune.pipelines.front.engine_ray import RayTasks

        address, cpus, gpus = self.ray_address, self.task_cpus, self.task_gpus
        return RayTasks(address=address, folder=folder, limit=limit, cpus=cpus, gpus=gpus)
