from .api import (  # noqa: F401
    Function,
    KernelError,
    Module,
    Offset,
    Report,
    address_of,
    empty,
    mark_written,
    memory,
    poison,
    written,
)
