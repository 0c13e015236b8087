"""What the client proves to servers, and what it demands of them."""

from __future__ import annotations

from dataclasses import dataclass

from cafsfs.errors import UsageError
from cafsfs.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A secret, if there is one; it is used with every server that offers authentication.

    ``required``: no word is said to a server that does not prove that it knows the secret.
    """

    secret: Secret | None = None
    required: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.secret, Secret | None):  # it would be shown
            raise UsageError(
                f"a secret is no {type(self.secret).__name__}",
                hint="`cafsfs.secret.Secret(b'…')`, or the path of the file that holds it",
            )
        if self.required and self.secret is None:
            raise UsageError(
                "authentication is required, and there is no secret",
                hint="name the file that holds it: --secret-file FILE",
            )


NO_CREDENTIALS = Credentials()
