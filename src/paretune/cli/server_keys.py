"""Keys of an OpenAI-compatible server that draws responses: of `paretune sample` and `paretune improve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paretune.cli.keys import key
from paretune.errors import InputError

if TYPE_CHECKING:
    from paretune.pipelines.sampling_server import Access

ACCESS = ("api_key_env", "concurrency", "timeout", "retries")


@dataclass
class ServerKeys:
    """Where responses come from, and how it is asked."""

    server: str | None = key("Base URL of an OpenAI-compatible server, as http://localhost:8000/v1.")
    api_key_env: str | None = key("Name of the environment variable that holds the server's key.")
    concurrency: int = key("Requests to the server at a time.", 16)
    timeout: float = key("Seconds that a request may take.", 600.0)
    retries: int = key("How often a failed request is repeated, waiting longer each time.", 5)

    def access(self) -> Access:
        """How the server is asked.

        Raises:
            InputError: a bad value, a key without a server.
        """
        from paretune.pipelines.sampling_server import Access

        for name, least in (("concurrency", 1), ("retries", 0), ("timeout", 0.001)):
            if getattr(self, name) < least:
                raise InputError(f"bad {name}", expected=f"at least {least}", found=getattr(self, name))
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise InputError("bad server", expected="a URL, as http://localhost:8000/v1", found=self.server)
        if self.server is not None and ("@" in self.server or "?" in self.server):  # not shown: it holds the secret
            fix = "Give api_key_env, the name of an environment variable that holds the key."
            raise InputError("a server's address with a key in it", fix=fix)
        if self.server is None and self.api_key_env is not None:
            raise InputError("api_key_env without a server", fix="Give --server URL, or leave it out.")
        return Access(**{name: getattr(self, name) for name in ACCESS})
