from .api import (  # noqa: F401
    Function,
    KernelError,
    Module,
    Offset,
    Report,
    address_of,
    allocation_at,
    empty,
    mark_written,
    memory,
    poison,
    written,
)
